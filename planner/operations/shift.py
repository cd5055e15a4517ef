"""Shift."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import Number, settled

__all__ = ["Shift"]


class Shift(Operation):
    """Add an offset to every element."""

    EXAMPLES: ClassVar[tuple[Example, ...]] = (Example({"offset": 0.5}, before=(1, -2, 0), after=(1.5, -1.5, 0.5)),)

    kind: Literal["shift"] = "shift"
    """The name of the operation."""
    offset: Number
    """What to add, in the units of the weights: a number, or a ramp such as `{"ramp": [0, 0.1]}`."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w + offset, the offset rounded to the precision of `values` first."""
        return values + values.dtype.type(settled(self.offset))
