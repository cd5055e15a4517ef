"""Shift."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.operations.base import Example, Operation, Values

__all__ = ["Shift"]


class Shift(Operation):
    """Add an offset to every element."""

    EXAMPLES: ClassVar[tuple[Example, ...]] = (Example({"offset": 0.5}, before=(1, -2, 0), after=(1.5, -1.5, 0.5)),)

    kind: Literal["shift"] = "shift"
    """The name of the operation."""
    offset: float
    """What to add, in the units of the weights."""

    def apply(self, values: Values) -> Values:
        """w + offset."""
        return values + values.dtype.type(self.offset)
