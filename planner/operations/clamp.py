"""Clamp."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import Number, Ramp, settled

__all__ = ["Clamp"]


class Clamp(Operation):
    """Limit every element to a range; at least one bound."""

    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"minimum": -1, "maximum": 1}, before=(0.5, -3, 7), after=(0.5, -1, 1)),
        Example({"maximum": 2}, before=(0.5, -3, 7), after=(0.5, -3, 2)),
    )

    kind: Literal["clamp"] = "clamp"
    """The name of the operation."""
    minimum: Number | None = None
    """Smaller elements become this: a number, or a ramp such as `{"ramp": [1, 2]}`; null means no lower bound."""
    maximum: Number | None = None
    """Larger elements become this: a number, or a ramp such as `{"ramp": [1, 2]}`; null means no upper bound."""

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        if self.minimum is None and self.maximum is None:
            raise ValueError("clamp needs a minimum, a maximum or both")
        if self.minimum is None or self.maximum is None:
            return self
        # Bounds that change with depth are compared layer by layer, when `at_depth` has made numbers of them; in the
        # first and the last layer they can be compared now.
        for depth in (0, 1):
            bounds = (self.minimum, self.maximum)
            low, high = (bound.at(depth) if isinstance(bound, Ramp) else bound for bound in bounds)
            if low > high:
                raise ValueError(f"the minimum {low} is above the maximum {high}")
        return self

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """min(max(w, minimum), maximum); infinities are clamped, NaN stays NaN, and -0 is within a bound of 0."""
        # numpy.clip would turn -0 into +0 at a bound of 0: a stored bit changed where no value did.
        if self.minimum is not None:
            lower = values.dtype.type(settled(self.minimum))
            values = np.where(values < lower, lower, values)
        if self.maximum is not None:
            upper = values.dtype.type(settled(self.maximum))
            values = np.where(values > upper, upper, values)
        return values
