"""Normalize."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np

from planner.operations.base import ANYWHERE, Block, Example, Operation, Place, Values
from planner.operations.limits import Positive
from planner.operations.numbers import settled
from planner.operations.sums import squares

__all__ = ["Normalize"]


class Normalize(Operation):
    """Bring every row, or the whole tensor, to a given l2 norm."""

    POINTWISE: ClassVar[bool] = False
    OBSERVES: ClassVar[bool] = True
    KEEPS_ZEROS: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"norm": 1, "per": "rows"}, before=((0, 2), (0, 0)), after=((0, 1), (0, 0))),
        Example({"norm": 10, "per": "whole"}, before=((3, 0), (0, 4)), after=((6, 0), (0, 8))),
    )

    kind: Literal["normalize"] = "normalize"
    """The name of the operation."""
    norm: Positive
    """The l2 norm that each row, or the whole tensor, gets."""
    per: Literal["rows", "whole"]
    """What is brought to that norm. A row of zeros stays as it is."""

    @property
    def observes(self) -> bool:
        """The norm of the whole must be known before any of it is changed; that of a row is found in the row."""
        return self.per == "whole"

    def observe(self, blocks: Iterable[Block], place: Place) -> float | None:
        """Norm of the whole tensor, summed row by row in float64; nothing where each row stands for itself."""
        if self.per == "rows":
            return None
        total = 0.0
        for block in blocks:
            for square in squares(block.values):
                total += float(square)
        return float(np.sqrt(total))

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w · (norm / ‖·‖) in float64, ‖·‖ being the norm of the row or of the whole.

        What has no norm stays as it is: zeros, and a row (or a whole) with NaN, an infinity, or squares beyond
        float64.
        """
        norms = np.sqrt(squares(values))[:, None] if self.per == "rows" else np.float64(place.observed)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            factors = np.where((norms > 0) & (norms < np.inf), settled(self.norm) / norms, 1.0)
            return (values.astype(np.float64) * factors).astype(values.dtype)
