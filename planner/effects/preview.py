"""What a list of operations would do to one tensor, exactly, before a byte of it changes.

The preview runs the very function that `apply` will run. For a dtype of 16 bits or fewer it runs on each distinct
pattern once, weighted by how often the pattern occurs, which the histogram beside the profile says without reading a
weight; for wider dtypes on the chunks. Memory: a few chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.checkpoint import Checkpoint, Tensor
from planner.dtypes import NUMBERS, FloatDtype
from planner.dtypes.floats import Patterns
from planner.effects.types import Moments, Preview
from planner.operations import Operation, fold
from planner.profile import Histogram

__all__ = ["preview"]

Weights = NDArray[np.int64] | None


def preview(
    checkpoint: Checkpoint,
    tensor: Tensor,
    dtype: FloatDtype,
    operations: Sequence[Operation],
    *,
    histogram: Histogram | None = None,
    progress: Callable[[int], None] | None = None,
) -> Preview:
    """Compare the tensor before and after `operations`.

    With the exact histogram of the tensor no weight is read; else the tensor is read once. `progress` is told the bytes
    done.
    """

    def chunks() -> Iterator[Patterns]:
        for chunk in checkpoint.chunks(tensor):
            yield dtype.patterns(chunk)
            if progress:
                progress(len(chunk))

    transform = fold(operations, dtype)
    comparison = _Comparison()
    if dtype.tabulable:
        if histogram and histogram.exact:
            counts = histogram.table
            if progress:
                progress(tensor.nbytes)
        else:
            from planner.profile.tallies import Matrix, describe  # here, because numba comes with it

            counts = describe(chunks, Matrix(NUMBERS[dtype.name], tensor.elements, columns=0)).counts
        occurring = np.flatnonzero(counts).astype(dtype.pattern)
        comparison.add(occurring, transform(occurring), dtype, counts[occurring])
    else:
        for patterns in chunks():
            comparison.add(patterns, transform(patterns), dtype, None)
    return comparison.result(tensor.elements)


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
    product: list[float] = field(default_factory=list)
    square: list[float] = field(default_factory=list)
    """Squares of the old values in the elements that are finite before and after."""
    distance: list[float] = field(default_factory=list)

    def add(self, old: Patterns, new: Patterns, dtype: FloatDtype, weights: Weights) -> None:
        before, after = dtype.decode_float64(old), dtype.decode_float64(new)
        self.before.add(before, weights)
        self.after.add(after, weights)
        self.changed += _count(old != new, weights)
        self.broken += _count(np.isfinite(before) & ~np.isfinite(after), weights)
        both = np.isfinite(before) & np.isfinite(after)
        weights = None if weights is None else weights[both]
        before, after = before[both], after[both]
        with np.errstate(over="ignore"):
            change = after - before
        self.product.append(_weighted(before, after, weights))
        self.square.append(_weighted(before, before, weights))
        self.distance.append(_weighted(change, change, weights))

    def result(self, elements: int) -> Preview:
        square, product, distance = (_sum(parts) for parts in (self.square, self.product, self.distance))
        return Preview(
            elements=elements,
            changed_elements=self.changed,
            changed_fraction=self.changed / elements if elements else 0.0,
            realised_scale=_plain(product / square) if square > 0 and not self.broken else None,
            relative_change=None if self.broken else _relative(distance, square),
            broken_elements=self.broken,
            before=self.before.moments(),
            after=self.after.moments(),
        )


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
