"""Dtypes of 16 bits or fewer: counting the patterns is knowing the distribution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from planner.dtypes import NumberDtype, number_dtype
from planner.dtypes.floats import Patterns
from planner.profile.kernels import MOMENTS, compress_counts, moments_of_counts, tally_halves, tally_table
from planner.profile.statistics import Moments, ranks_of, statistics_from
from planner.profile.tallies.base import Described, Matrix, Scratch, SecondLook, Tally
from planner.profile.types import OUTLIER_ORDERS, Statistics

__all__ = ["NarrowTally", "statistics_of_counts"]

# For both, the bits of |x| moved left are those of a float32: of |x| itself, or of |x| · 2^-112.
_HALVES = {"BF16": (16, 0x7F80, 1.0), "F16": (13, 0x7C00, 2.0**-112)}


class NarrowTally(Tally):
    """Counts the patterns of one matrix."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix)
        self.counts = np.zeros(2 ** (8 * matrix.dtype.itemsize), np.int64)
        self._table = _table(matrix.dtype.name)

    def count(self, scratch: Scratch, patterns: Patterns, first: int) -> None:
        """Count a piece that begins at the place `first`. Releases the GIL."""
        scratch.clear(self.matrix, first, len(patterns), np.int64)
        into = (scratch.counts, scratch.rows, scratch.columns, scratch.keys, scratch.patterns, scratch.places)
        if self.matrix.dtype.name in _HALVES:
            shift, limit, _ = _HALVES[self.matrix.dtype.name]
            tally_halves(patterns, shift, limit, first, self.matrix.columns, *into)
        else:
            table = self._table
            tally_table(patterns, table.squares, table.magnitudes, first, self.matrix.columns, *into)

    def _merge(self, scratch: Scratch) -> None:
        self._fold(scratch, self.counts)

    def _absorb(self, part: NarrowTally) -> None:
        self.counts += part.counts

    def _values(self, patterns: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.matrix.dtype.decode_float64(patterns.astype(self.matrix.dtype.pattern))

    def finish(self, again: SecondLook) -> Described:  # noqa: ARG002 - the counts know everything
        """The result."""
        if self._norms and self.matrix.dtype.name in _HALVES:
            self._norms.scale(_HALVES[self.matrix.dtype.name][2])
        return Described(
            statistics=statistics_of_counts(self.counts, self.matrix.dtype),
            norms=self._norms,
            largest=self._largest_elements(),
            counts=self.counts,
        )


@dataclass(frozen=True)
class _Table:
    """What each pattern of a narrow dtype stands for."""

    ascending: NDArray[np.int32]
    """The patterns of finite values, in the order of the values."""
    values: NDArray[np.float64]
    """These values."""
    squares: NDArray[np.float64]
    """By pattern: the square of the value, 0 where it is not finite."""
    magnitudes: NDArray[np.int64]
    """By pattern: integers in the order of the magnitudes, 0 for zero and what is not finite."""
    zeros: NDArray[np.intp]
    negative_zeros: NDArray[np.intp]
    subnormals: NDArray[np.intp]
    nan: NDArray[np.intp]
    inf: NDArray[np.intp]
    negative_inf: NDArray[np.intp]


@cache
def _table(name: str) -> _Table:
    dtype = number_dtype(name)
    assert dtype is not None
    by_pattern = dtype.decode_float64(dtype.all_patterns())
    finite = np.flatnonzero(np.isfinite(by_pattern))
    ascending = finite[np.argsort(by_pattern[finite], kind="stable")].astype(np.int32)
    bounded = np.where(np.isfinite(by_pattern), by_pattern, 0.0)
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(by_pattern)
    return _Table(
        ascending=ascending,
        values=by_pattern[ascending],
        squares=bounded * bounded,
        magnitudes=np.unique(np.append(0.0, np.abs(bounded)), return_inverse=True)[1][1:].astype(np.int64),
        zeros=np.flatnonzero(by_pattern == 0),
        negative_zeros=np.flatnonzero((by_pattern == 0) & np.signbit(by_pattern)),
        subnormals=np.flatnonzero((magnitude > 0) & (magnitude < dtype.smallest_normal)),
        nan=np.flatnonzero(np.isnan(by_pattern)),
        inf=np.flatnonzero(np.isinf(by_pattern)),
        negative_inf=np.flatnonzero(by_pattern == -np.inf),
    )


def statistics_of_counts(counts: NDArray[np.int64], dtype: NumberDtype) -> Statistics:
    """Every statistic of a tensor of a narrow dtype; `counts`: how often each pattern occurs, index = pattern."""
    table = _table(dtype.name)
    found, occurrences = np.empty(len(table.values)), np.empty(len(table.values), np.int64)
    size = compress_counts(counts, table.ascending, table.values, found, occurrences)
    values, occurrences = found[:size], occurrences[:size]

    def counted(patterns: NDArray[np.intp]) -> int:
        return int(counts[patterns].sum())

    odd = {
        "zeros": counted(table.zeros),
        "negative_zeros": counted(table.negative_zeros),
        "subnormals": counted(table.subnormals),
        "nan": counted(table.nan),
        "inf": counted(table.inf),
        "negative_inf": counted(table.negative_inf),
    }
    if not size:
        return Statistics(**odd)
    raw = np.zeros(MOMENTS)
    entropy = moments_of_counts(values, occurrences, raw)
    moments = Moments.of(raw, low=float(values[0]), high=float(values[-1]))
    up_to = np.cumsum(occurrences)
    at = np.searchsorted(up_to, ranks_of(moments.n), side="left")
    distance = np.abs(values - moments.mean)
    return statistics_from(
        moments,
        quantiles=values[at].tolist(),
        outliers=[int(occurrences[distance > int(order) * moments.std].sum()) for order in OUTLIER_ORDERS],
        distinct=size,
        entropy=entropy,
        odd=odd,
    )
