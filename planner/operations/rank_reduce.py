"""Rank reduce."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from planner.operations.base import ANYWHERE, Block, Example, Operation, Place, Values
from planner.operations.singular import rows_of, with_singular_values

__all__ = ["RankReduce"]


class RankReduce(Operation):
    """Keep the largest singular values of a matrix and drop the rest, as LASER does to late MLP layers."""

    POINTWISE: ClassVar[bool] = False
    OBSERVES: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (Example({"rank": 1}, before=((3, 0), (0, 1)), after=((3, 0), (0, 0))),)

    kind: Literal["rank_reduce"] = "rank_reduce"
    """The name of the operation."""
    rank: int = Field(ge=1)
    """How many singular values to keep. As many as there are, or more, changes nothing."""

    def observe(self, blocks: Iterable[Block], place: Place) -> NDArray[np.float64]:
        """The new matrix, whole, in float64. Raises what `with_singular_values` does."""
        return with_singular_values(
            blocks, place, lambda found: np.where(np.arange(len(found)) < self.rank, found, 0.0)
        )

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """The nearest matrix of that rank (Eckart and Young 1936), computed in float64.

        LASER: Sharma, Ash and Misra 2023, "The Truth is in There". Rounding to the stored dtype adds small singular
        values of its own.
        """
        return rows_of(values, place)
