"""Soft threshold."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import NotNegative, settled

__all__ = ["SoftThreshold"]


class SoftThreshold(Operation):
    """Move every element towards zero by a threshold; smaller ones become zero. It makes weights sparse."""

    KEEPS_ZEROS: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"threshold": 0.5}, before=(2, -1, 0.25, -0.5), after=(1.5, -0.5, 0, 0)),
    )

    kind: Literal["soft_threshold"] = "soft_threshold"
    """The name of the operation."""
    threshold: NotNegative
    """How far each element moves, in the units of the weights; 0 or more; a number or a ramp."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """sign(w) · max(|w| - threshold, 0), the proximal operator of threshold · |w|.

        Infinities stay, NaN stays NaN, and what becomes zero keeps its sign, so that a stored -0 keeps its bits.
        """
        # Beyond the largest finite number the threshold would be infinite, and infinity less infinity is no number.
        step = min(settled(self.threshold), float(np.finfo(values.dtype).max))
        shrunk = np.maximum(np.abs(values) - values.dtype.type(step), values.dtype.type(0))
        return np.copysign(shrunk, values)
