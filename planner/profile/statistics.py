"""Exact statistics of one tensor, in bounded memory, from chunks of stored patterns.

A dtype of 16 bits or fewer has at most 65,536 patterns: one pass counts them, and every statistic follows from the
counts, exactly. Wider dtypes take a few passes over the chunks: sums, then central moments about the true mean, then
outliers about the true standard deviation. All sums are in float64. Knows no file format: it asks for patterns.

Definitions, over the finite elements x of which there are n: mean = Σx/n; std = sqrt(Σ(x-mean)²/n), the population's;
skewness = m₃/m₂^1.5; excess kurtosis = m₄/m₂² - 3, with mₖ = Σ(x-mean)ᵏ/n; rms = sqrt(Σx²/n); the l2 norm is
sqrt(Σx²). A quantile q is the ceil(q·n)-th smallest element (numpy's `inverted_cdf`). Outliers of order k are the
elements with |x-mean| > k·std.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.dtypes import FloatDtype
from planner.dtypes.floats import Patterns
from planner.profile.selection import order_statistics
from planner.profile.types import OUTLIER_ORDERS, QUANTILES, Statistics

__all__ = ["Chunks", "statistics_of"]

Chunks = Callable[[], Iterable[Patterns]]
"""Gives the tensor's patterns, chunk by chunk, from the beginning each time it is called."""

_LARGEST_SORTED = 2**23


def statistics_of(chunks: Chunks, dtype: FloatDtype) -> Statistics:
    """All statistics of a tensor. Memory: a few chunks, whatever the size of the tensor."""
    if dtype.tabulable:
        return _from_counts(pattern_counts(chunks, dtype), dtype)
    return _from_passes(chunks, dtype)


def pattern_counts(chunks: Chunks, dtype: FloatDtype) -> NDArray[np.int64]:
    """How often each pattern of a `tabulable` dtype occurs; index = pattern, shape [2^bits]."""
    counts = np.zeros(2 ** (8 * dtype.itemsize), dtype=np.int64)
    for patterns in chunks():
        counts += np.bincount(patterns, minlength=len(counts))
    return counts


@dataclass
class _Weighted:
    """Finite values with how often each occurs (None: once), scaled by a power of two so that no power overflows."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64] | None

    def total(self, of: NDArray[np.float64]) -> float:
        return float(of.sum() if self.counts is None else of @ self.counts)

    def where(self, mask: NDArray[np.bool_]) -> int:
        return int(np.count_nonzero(mask) if self.counts is None else self.counts[mask].sum())


def _from_counts(counts: NDArray[np.int64], dtype: FloatDtype) -> Statistics:
    patterns = np.flatnonzero(counts)
    values = dtype.decode_float64(patterns.astype(dtype.pattern))
    occurrences = counts[patterns]
    finite = np.isfinite(values)
    nan = int(occurrences[np.isnan(values)].sum())
    inf = int(occurrences[np.isinf(values)].sum())
    values, occurrences = values[finite], occurrences[finite]
    order = np.argsort(values, kind="stable")
    values, occurrences = values[order], occurrences[order]
    n = int(occurrences.sum())
    if n == 0:
        return Statistics(nan=nan, inf=inf)
    at = np.searchsorted(np.cumsum(occurrences), [_rank(q, n) for q in QUANTILES], side="left")
    return _finished(
        parts=lambda: [_Weighted(values, occurrences)],
        n=n,
        nan=nan,
        inf=inf,
        extremes=(float(values[0]), float(values[-1])),
        quantiles=[float(values[index]) for index in at],
        distinct=len(np.unique(values)),
    )


def _from_passes(chunks: Chunks, dtype: FloatDtype) -> Statistics:
    n = nan = inf = size = 0
    low, high = math.inf, -math.inf
    for patterns in chunks():
        values = dtype.decode(patterns)
        finite = values[np.isfinite(values)]
        size += values.size
        nan += int(np.count_nonzero(np.isnan(values)))
        n += finite.size
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    inf = size - n - nan
    if n == 0:
        return Statistics(nan=nan, inf=inf)

    def parts() -> Iterable[_Weighted]:
        for patterns in chunks():
            values = dtype.decode_float64(patterns)
            yield _Weighted(values[np.isfinite(values)], None)

    return _finished(
        parts=parts,
        n=n,
        nan=nan,
        inf=inf,
        extremes=(low, high),
        quantiles=order_statistics(chunks, dtype, [_rank(q, n) for q in QUANTILES]),
        distinct=_distinct(parts, n),
    )


def _rank(quantile: float, n: int) -> int:
    """The 1-based rank of a quantile: ceil(q·n), with q·n exactly on a whole number not pushed up by rounding."""
    return min(max(math.ceil(round(quantile * n, 9)), 1), n)


def _distinct(parts: Callable[[], Iterable[_Weighted]], n: int) -> int | None:
    if n > _LARGEST_SORTED:
        return None  # counting distinct values of a wide dtype takes memory in proportion to the tensor
    return len(np.unique(np.concatenate([part.values for part in parts()])))


def _finished(
    *,
    parts: Callable[[], Iterable[_Weighted]],
    n: int,
    nan: int,
    inf: int,
    extremes: tuple[float, float],
    quantiles: list[float],
    distinct: int | None,
) -> Statistics:
    low, high = extremes
    largest = max(-low, high)
    # A power of two is exact to divide by, and with |x| <= 2 no fourth power can overflow.
    unit = 2.0 ** min(math.frexp(largest)[1], 1023) if largest > 0 else 1.0
    zeros, first, square = 0, [], []
    for part in parts():
        scaled = part.values / unit
        zeros += part.where(part.values == 0)
        first.append(part.total(scaled))
        square.append(part.total(scaled * scaled))
    mean = math.fsum(first) / n
    sum_of_squares = math.fsum(square)
    powers: list[list[float]] = [[], [], [], []]
    for part in parts():
        deviation = part.values / unit - mean
        term = deviation
        for moments in powers:
            moments.append(part.total(term))
            term = term * deviation
    drift, m2, m3, m4 = (math.fsum(moments) / n for moments in powers)
    # What rounding left of Σ(x - mean) gives the mean to the last digit, and moves the moments to it: where elements
    # agree in all but their last bits, that rounding is as large as the deviations themselves.
    mean += drift
    m4 += drift * (drift * (6 * m2 - 3 * drift * drift) - 4 * m3)
    m3 += drift * (2 * drift * drift - 3 * m2)
    m2 = max(m2 - drift * drift, 0.0)
    if low == high:  # n equal numbers do not deviate, whatever rounding says
        mean, m2, m3, m4 = low / unit, 0.0, 0.0, 0.0
    std = math.sqrt(m2)
    outliers = dict.fromkeys(OUTLIER_ORDERS, 0)
    for part in parts():
        distance = np.abs(part.values / unit - mean)
        for order in OUTLIER_ORDERS:
            outliers[order] += part.where(distance > int(order) * std)
    return Statistics(
        mean=_plain(mean * unit),
        std=_plain(std * unit),
        min=_plain(low),
        max=_plain(high),
        abs_max=_plain(largest),
        rms=_plain(math.sqrt(sum_of_squares / n) * unit),
        l2_norm=_plain(math.sqrt(sum_of_squares) * unit),
        skewness=m3 / m2**1.5 if m2**1.5 > 0 else None,
        kurtosis=m4 / m2**2 - 3 if m2**2 > 0 else None,
        zeros=zeros,
        nan=nan,
        inf=inf,
        quantiles={_name(q): _plain(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        outliers=outliers,
        distinct_values=distinct,
    )


def _name(quantile: float) -> str:
    return f"{quantile:g}"


def _plain(value: float) -> float | None:
    """Without a sign on zero; None for what JSON cannot say (the l2 norm of huge float64 numbers)."""
    return value + 0.0 if math.isfinite(value) else None
