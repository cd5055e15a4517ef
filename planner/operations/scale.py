"""Scale."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.operations.base import Example, Operation, Values

__all__ = ["Scale"]


class Scale(Operation):
    """Multiply every element by a factor."""

    LINEAR: ClassVar[bool] = True
    KEEPS_ZEROS: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"factor": 2}, before=(1, -2, 0), after=(2, -4, 0)),
        Example({"factor": -0.5}, before=(1, -2, 0), after=(-0.5, 1, 0)),
    )

    kind: Literal["scale"] = "scale"
    """The name of the operation."""
    factor: float
    """What to multiply by. 1 changes nothing; 0 is the operation `zero`."""

    def apply(self, values: Values) -> Values:
        """w · factor, the factor rounded to the precision of `values` first, as torch does."""
        return values * values.dtype.type(self.factor)
