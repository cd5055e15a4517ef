"""Which elements of a tensor an operation reaches: rows, columns, or elements by their stored value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from planner.operations.base import Place, Values

__all__ = ["EVERYTHING", "Columns", "Everything", "Rows", "Selection", "ValueRanges"]


class Selection(Protocol):
    """Some elements of a tensor."""

    @property
    def pointwise(self) -> bool:
        """Whether the stored value alone decides."""
        ...

    def mask(self, stored: Values, place: Place) -> NDArray[np.bool_] | bool:
        """Which elements of the block are meant; broadcasts to its shape. `stored` is the block before the plan."""
        ...


@dataclass(frozen=True)
class Everything:
    """Every element."""

    pointwise = True

    def mask(self, stored: Values, place: Place) -> bool:
        """True."""
        return True


EVERYTHING = Everything()


@dataclass(frozen=True, eq=False)
class Rows:
    """Whole rows."""

    indices: NDArray[np.int64]
    """Sorted, without repetition."""
    pointwise = False

    def mask(self, stored: Values, place: Place) -> NDArray[np.bool_]:
        """[rows of the block, 1]."""
        chosen = np.zeros(len(stored), dtype=bool)
        chosen[self.within(place.first, len(stored)) - place.first] = True
        return chosen[:, None]

    def within(self, first: int, count: int) -> NDArray[np.int64]:
        """Those of the rows `first` to `first + count` that are meant."""
        start, end = np.searchsorted(self.indices, (first, first + count))
        return self.indices[start:end]


@dataclass(frozen=True, eq=False)
class Columns:
    """Whole columns."""

    indices: NDArray[np.int64]
    """Sorted, without repetition."""
    pointwise = False

    def mask(self, stored: Values, place: Place) -> NDArray[np.bool_]:
        """[1, columns]."""
        chosen = np.zeros(stored.shape[1], dtype=bool)
        chosen[self.indices] = True
        return chosen[None, :]


@dataclass(frozen=True)
class ValueRanges:
    """Elements whose stored value lies in one of some closed intervals; never a NaN."""

    ranges: tuple[tuple[float, float], ...]
    """Each (low, high); infinite bounds are allowed."""
    pointwise = True

    def mask(self, stored: Values, place: Place) -> NDArray[np.bool_]:
        """Same shape as the block."""
        chosen = np.zeros(stored.shape, dtype=bool)
        for low, high in self.ranges:
            least, most = _inward(low, stored.dtype, up=True), _inward(high, stored.dtype, up=False)
            chosen |= (stored >= least) & (stored <= most)
        return chosen


def _inward(bound: float, dtype: np.dtype[np.floating[Any]], *, up: bool) -> np.floating[Any]:
    """The nearest number of `dtype` that is not outside of `bound`: float32(0.1) is above a bound of 0.1."""
    with np.errstate(over="ignore"):
        found = dtype.type(bound)
    outside = float(found) < bound if up else float(found) > bound
    return np.nextafter(found, dtype.type(np.inf if up else -np.inf)) if outside else found
