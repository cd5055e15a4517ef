"""Spectral scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from planner.operations.base import ANYWHERE, Block, Example, Operation, Place, Values
from planner.operations.numbers import Number, settled
from planner.operations.singular import rows_of, with_singular_values

__all__ = ["SpectralScale"]


class SpectralScale(Operation):
    """Multiply some singular values of a matrix: strengthen or weaken what it does most, or least."""

    POINTWISE: ClassVar[bool] = False
    OBSERVES: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"last": 1, "factor": 2}, before=((3, 0), (0, 1)), after=((6, 0), (0, 1))),
        Example({"first": 2, "factor": 0.5}, before=((3, 0), (0, 1)), after=((3, 0), (0, 0.5))),
    )

    kind: Literal["spectral_scale"] = "spectral_scale"
    """The name of the operation."""
    first: int = Field(default=1, ge=1)
    """Number of the first singular value to multiply; the largest is number 1."""
    last: int | None = Field(default=None, ge=1)
    """Number of the last one, itself included; null means the smallest there is."""
    factor: Number
    """What to multiply them by; 0 removes them."""

    @model_validator(mode="after")
    def _range_makes_sense(self) -> Self:
        if self.last is not None and self.last < self.first:
            raise ValueError(f"the last singular value, {self.last}, comes before the first, {self.first}")
        return self

    def observe(self, blocks: Iterable[Block], place: Place) -> NDArray[np.float64]:
        """The new matrix, whole, in float64. Raises what `with_singular_values` does, and for a `first` beyond all."""
        factor = settled(self.factor)

        def change(found: NDArray[np.float64]) -> NDArray[np.float64]:
            if self.first > len(found):
                raise ValueError(f"there are {len(found)} singular values; none has the number {self.first}")
            numbers = np.arange(1, len(found) + 1)
            chosen = (numbers >= self.first) & (numbers <= (len(found) if self.last is None else self.last))
            return np.where(chosen, factor * found, found)

        return with_singular_values(blocks, place, change)

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """U·diag(new s)·Vᵀ, computed in float64."""
        return rows_of(values, place)
