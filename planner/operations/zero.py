"""Zero."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values

__all__ = ["Zero"]


class Zero(Operation):
    """Set every element to +0, NaN and infinities included."""

    KEEPS_ZEROS: ClassVar[bool] = True
    LINEAR: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (Example({}, before=(1, -2, 0), after=(0, 0, 0)),)

    kind: Literal["zero"] = "zero"
    """The name of the operation."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """0 for every w."""
        return np.zeros_like(values)
