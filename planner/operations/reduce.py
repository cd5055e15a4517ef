"""Reduce."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import NotNegative, settled

__all__ = ["Reduce"]


class Reduce(Operation):
    """Weaken by a share: E·(1 - alpha). Meant for the embedding rows of tokens to be seen or said less."""

    LINEAR: ClassVar[bool] = True
    KEEPS_ZEROS: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"alpha": 0.25}, before=(1, -2, 0), after=(0.75, -1.5, 0)),
        Example({"alpha": 0.5}, before=(1, -2, 0), after=(0.5, -1, 0)),
    )

    kind: Literal["reduce"] = "reduce"
    """The name of the operation."""
    alpha: NotNegative
    """Share that is taken off, 0 or more: 0.1 takes off a tenth, 1 everything, more turns the sign."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w · (1 - alpha): one multiplication, by a factor computed in float64 and rounded to the precision of w."""
        return values * values.dtype.type(1.0 - settled(self.alpha))
