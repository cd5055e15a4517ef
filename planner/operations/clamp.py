"""Clamp."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from planner.operations.base import Example, Operation, Values

__all__ = ["Clamp"]


class Clamp(Operation):
    """Limit every element to a range; at least one bound."""

    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"minimum": -1, "maximum": 1}, before=(0.5, -3, 7), after=(0.5, -1, 1)),
        Example({"maximum": 2}, before=(0.5, -3, 7), after=(0.5, -3, 2)),
    )

    kind: Literal["clamp"] = "clamp"
    """The name of the operation."""
    minimum: float | None = None
    """Smaller elements become this; null means no lower bound."""
    maximum: float | None = None
    """Larger elements become this; null means no upper bound."""

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        if self.minimum is None and self.maximum is None:
            raise ValueError("clamp needs a minimum, a maximum or both")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"the minimum {self.minimum} is above the maximum {self.maximum}")
        return self

    def apply(self, values: Values) -> Values:
        """min(max(w, minimum), maximum); infinities are clamped, NaN stays NaN, and -0 is within a bound of 0."""
        # numpy.clip would turn -0 into +0 at a bound of 0: a stored bit changed where no value did.
        if self.minimum is not None:
            lower = values.dtype.type(self.minimum)
            values = np.where(values < lower, lower, values)
        if self.maximum is not None:
            upper = values.dtype.type(self.maximum)
            values = np.where(values > upper, upper, values)
        return values
