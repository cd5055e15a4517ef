"""What an edit would do to its tensor, exactly, before a byte of it changes.

The preview runs the very function that `apply` will run. An edit of a dtype of 16 bits or fewer that looks at each
element alone runs on each distinct pattern once, weighted by how often the pattern occurs, which the histogram beside
the profile says without reading a weight; every other edit runs on the bytes. Memory: a few chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.checkpoint import Checkpoint
from planner.dtypes import NUMBERS, FloatDtype
from planner.dtypes.floats import Patterns
from planner.edits import Surroundings, TensorEdit
from planner.effects.types import Moments, Preview, Source

__all__ = ["preview"]

Weights = NDArray[np.int64] | None


def preview(around: Surroundings, edit: TensorEdit, *, progress: Callable[[int], None] | None = None) -> Preview:
    """Compare a tensor before and after its edit.

    Where the edit is a function of each element and the exact histogram is kept, no weight is read; else the tensor is
    read, once or as often as the edit needs. `progress` is told the bytes done.
    """
    comparison = _Comparison()
    source: Source = "read"
    if edit.added is not None:
        source = "new"
        for new in edit.rewrite(edit.zeros):
            comparison.add(np.zeros_like(new), new, edit.dtype, None)
    elif edit.table is not None:
        counts, source = _counts(around, edit)
        occurring = np.flatnonzero(counts).astype(edit.dtype.pattern)
        comparison.add(occurring, edit.table[occurring], edit.dtype, counts[occurring])
    else:
        stored = _Stored(around.checkpoint, edit)
        for new in edit.rewrite(stored.chunks):
            comparison.add(stored.take(len(new)), new, edit.dtype, None)
    if progress:
        progress(edit.tensor.nbytes)
    return comparison.result(edit.tensor.elements, source)


def _counts(around: Surroundings, edit: TensorEdit) -> tuple[NDArray[np.int64], Source]:
    """How often each pattern occurs in the tensor."""
    histogram = around.histogram(edit.name)
    if histogram and histogram.exact:
        return histogram.table, "histogram"
    from planner.profile.tallies import Matrix, describe  # here, because numba comes with it

    matrix = Matrix(NUMBERS[edit.dtype.name], edit.tensor.elements, columns=0)
    stored = _Stored(around.checkpoint, edit)
    counts = describe(stored.chunks, matrix).counts
    assert counts is not None, "a narrow dtype is counted"
    return counts, "read"


class _Stored:
    """A tensor's stored patterns: for the edit to go through, and once more to compare with."""

    def __init__(self, checkpoint: Checkpoint, edit: TensorEdit) -> None:
        self._checkpoint, self._edit = checkpoint, edit
        self._again = self.chunks()
        self._rest: Patterns = np.empty(0, edit.dtype.pattern)

    def chunks(self) -> Iterator[Patterns]:
        """All patterns, in order."""
        return map(self._edit.dtype.patterns, self._checkpoint.chunks(self._edit.tensor))

    def take(self, count: int) -> Patterns:
        """The next `count` patterns."""
        parts = [self._rest]
        while sum(map(len, parts)) < count:
            parts.append(next(self._again))
        whole = np.concatenate(parts) if len(parts) > 1 else self._rest
        self._rest = whole[count:]
        return whole[:count]


@dataclass
class _Sums:
    """Running sums over finite values, each chunk's rounded once to float64 and added exactly at the end."""

    count: int = 0
    total: list[float] = field(default_factory=list)
    square: list[float] = field(default_factory=list)
    pivot: float | None = None
    """Some element. Deviations are summed around it: a norm weight is 1 ± little, and 1² - 1² would lose the little."""
    deviation: list[float] = field(default_factory=list)
    square_deviation: list[float] = field(default_factory=list)
    low: float = math.inf
    high: float = -math.inf
    nonfinite: int = 0

    def add(self, values: NDArray[np.float64], weights: Weights) -> None:
        finite = np.isfinite(values)
        self.nonfinite += _count(~finite, weights)
        values = values[finite]
        weights = None if weights is None else weights[finite]
        if not values.size:
            return
        self.count += values.size if weights is None else int(weights.sum())
        self.total.append(_weighted(values, None, weights))
        self.square.append(_weighted(values, values, weights))
        self.pivot = float(values[0]) if self.pivot is None else self.pivot
        with np.errstate(over="ignore"):
            deviation = values - self.pivot
        self.deviation.append(_weighted(deviation, None, weights))
        self.square_deviation.append(_weighted(deviation, deviation, weights))
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    def moments(self) -> Moments:
        if not self.count:
            return Moments(nonfinite=self.nonfinite)
        mean = _sum(self.total) / self.count
        mean_square = _sum(self.square) / self.count
        drift = _sum(self.deviation) / self.count
        variance = _sum(self.square_deviation) / self.count - drift * drift
        return Moments(
            mean=_plain(mean),
            std=_plain(math.sqrt(max(variance, 0.0))),
            rms=_plain(math.sqrt(mean_square)),
            min=self.low + 0.0,
            max=self.high + 0.0,
            abs_max=max(-self.low, self.high) + 0.0,
            nonfinite=self.nonfinite,
        )


@dataclass
class _Comparison:
    before: _Sums = field(default_factory=_Sums)
    after: _Sums = field(default_factory=_Sums)
    changed: int = 0
    broken: int = 0
    """Elements that were finite and no longer are."""
    infinite: int = 0
    """Those of them that became infinite."""
    zeros_made: int = 0
    product: list[float] = field(default_factory=list)
    square: list[float] = field(default_factory=list)
    """Squares of the old values in the elements that are finite before and after."""
    distance: list[float] = field(default_factory=list)
    pivot: float | None = None
    """Some scale near the realised one. What it leaves is summed: s² - (s - δ)² would lose a small spread."""
    slope: list[float] = field(default_factory=list)
    """Products of the old values with what the pivot leaves of the new ones."""
    rest: list[float] = field(default_factory=list)
    """Squares of what the pivot leaves."""

    def add(self, old: Patterns, new: Patterns, dtype: FloatDtype, weights: Weights) -> None:
        before, after = dtype.decode_float64(old), dtype.decode_float64(new)
        self.before.add(before, weights)
        self.after.add(after, weights)
        self.changed += _count(old != new, weights)
        self.infinite += _count(np.isfinite(before) & np.isinf(after), weights)
        self.broken += _count(np.isfinite(before) & ~np.isfinite(after), weights)
        self.zeros_made += _count((before != 0) & (after == 0), weights)
        both = np.isfinite(before) & np.isfinite(after)
        weights = None if weights is None else weights[both]
        before, after = before[both], after[both]
        product, square = _weighted(before, after, weights), _weighted(before, before, weights)
        if self.pivot is None and 0 < square < math.inf:
            self.pivot = product / square
        with np.errstate(over="ignore", invalid="ignore"):
            change = after - before
            left = after - (self.pivot or 0.0) * before
        self.product.append(product)
        self.square.append(square)
        self.distance.append(_weighted(change, change, weights))
        self.slope.append(_weighted(before, left, weights))
        self.rest.append(_weighted(left, left, weights))

    def result(self, elements: int, source: Source) -> Preview:
        square, product, distance = (_sum(parts) for parts in (self.square, self.product, self.distance))
        rest, slope = _sum(self.rest), _sum(self.slope)
        scale = product / square if square > 0 and not self.broken else None
        return Preview(
            elements=elements,
            source=source,
            changed_elements=self.changed,
            changed_fraction=self.changed / elements if elements else 0.0,
            realised_scale=None if scale is None else _plain(scale),
            scale_spread=None if scale is None else _spread(rest, slope, square),
            relative_change=None if self.broken else _relative(distance, square),
            broken_elements=self.broken,
            infinite_elements=self.infinite,
            zeros_made=self.zeros_made,
            before=self.before.moments(),
            after=self.after.moments(),
        )


def _spread(rest: float, slope: float, square: float) -> float | None:
    """√(Σ (w' - s·w)² / Σ w²), from Σ (w' - p·w)²: w' - p·w is (s - p)·w and a rest at right angles to w."""
    drift = slope / square
    spread = rest / square - drift * drift  # not a power: that raises an error where a product is infinite
    return _plain(math.sqrt(max(spread, 0.0))) if math.isfinite(spread) else None


def _relative(distance: float, square: float) -> float | None:
    if square > 0:
        return _plain(math.sqrt(distance / square))
    return 0.0 if distance == 0 else None


def _count(mask: NDArray[np.bool_], weights: Weights) -> int:
    return int(np.count_nonzero(mask) if weights is None else weights[mask].sum())


def _weighted(values: NDArray[np.float64], others: NDArray[np.float64] | None, weights: Weights) -> float:
    """Σ values, or Σ values · others, each element counted `weights` times."""
    with np.errstate(over="ignore", invalid="ignore"):  # squares of huge float64 weights; reported as null
        products = values if others is None else values * others
        return float(products.sum() if weights is None else products @ weights)


def _sum(parts: list[float]) -> float:
    """Their exact sum, rounded once; infinity or NaN where it has left float64."""
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):
        return sum(parts)


def _plain(value: float) -> float | None:
    return value + 0.0 if math.isfinite(value) else None
