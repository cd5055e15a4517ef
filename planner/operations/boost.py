"""Boost."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import NotNegative, settled

__all__ = ["Boost"]


class Boost(Operation):
    """Strengthen by a share: E·(1 + alpha). Meant for the embedding rows of tokens to be seen or said more."""

    LINEAR: ClassVar[bool] = True
    KEEPS_ZEROS: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (Example({"alpha": 0.25}, before=(1, -2, 0), after=(1.25, -2.5, 0)),)

    kind: Literal["boost"] = "boost"
    """The name of the operation."""
    alpha: NotNegative
    """Share that is added, 0 or more: 0.1 adds a tenth, 1 doubles."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w · (1 + alpha): one multiplication, by a factor computed in float64 and rounded to the precision of w."""
        return values * values.dtype.type(1.0 + settled(self.alpha))
