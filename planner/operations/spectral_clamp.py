"""Spectral clamp."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from planner.operations.base import ANYWHERE, Block, Example, Operation, Place, Values
from planner.operations.limits import Positive
from planner.operations.numbers import settled
from planner.operations.singular import rows_of, with_singular_values

__all__ = ["SpectralClamp"]


class SpectralClamp(Operation):
    """Limit the singular values of a matrix: no input is then stretched by more than the maximum."""

    POINTWISE: ClassVar[bool] = False
    OBSERVES: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"maximum": 2}, before=((3, 0), (0, 1)), after=((2, 0), (0, 1))),
    )

    kind: Literal["spectral_clamp"] = "spectral_clamp"
    """The name of the operation."""
    maximum: Positive
    """Larger singular values become this."""

    def observe(self, blocks: Iterable[Block], place: Place) -> NDArray[np.float64]:
        """The new matrix, whole, in float64. Raises what `with_singular_values` does."""
        maximum = settled(self.maximum)
        return with_singular_values(blocks, place, lambda found: np.minimum(found, maximum))

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """U·diag(min(s, maximum))·Vᵀ, computed in float64: the nearest matrix of that spectral norm."""
        return rows_of(values, place)
