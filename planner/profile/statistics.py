"""The definitions of a tensor's statistics, and their assembly from sums.

Over the finite elements x, of which there are n: mean = Σx/n; std = sqrt(Σ(x-mean)²/n), the population's; skewness =
m₃/m₂^1.5; excess kurtosis = m₄/m₂² - 3, with mₖ = Σ(x-mean)ᵏ/n; rms = sqrt(Σx²/n) = sqrt(m₂ + mean²); the l2 norm is
sqrt(n)·rms. A quantile q is the ceil(q·n)-th smallest element (numpy's `inverted_cdf`). Outliers of order k are the
elements with |x-mean| > k·std. The entropy is -Σ p·log2 p over the shares p of the values that occur, the two zeros
being one value (Shannon, 1948).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from planner.profile.types import OUTLIER_ORDERS, QUANTILES, Statistics

__all__ = ["Moments", "ranks_of", "statistics_from"]


@dataclass(frozen=True)
class Moments:
    """Central moments of n > 0 elements, which were multiplied by `unit`, a power of two."""

    n: int
    mean: float
    m2: float
    m3: float
    m4: float
    low: float
    """The smallest element, as it is stored."""
    high: float
    """The largest one."""
    unit: float = 1.0

    @classmethod
    def of(cls, sums: NDArray[np.float64], *, low: float, high: float, unit: float = 1.0) -> Moments:
        """From an accumulator of the kernels."""
        n, mean, rest, m2, m3, m4 = sums.tolist()
        if low == high:  # n equal numbers do not deviate, whatever rounding says
            return cls(int(n), low * unit, 0.0, 0.0, 0.0, low, high, unit)
        return cls(int(n), mean + rest, m2 / n, m3 / n, m4 / n, low, high, unit)

    @property
    def std(self) -> float:
        """Population standard deviation, in the unit."""
        return math.sqrt(self.m2)


def ranks_of(n: int) -> list[int]:
    """The 1-based rank of each quantile: ceil(q·n), exactly: q is the decimal number that it is written as."""
    return [max(-(-share.numerator * n // share.denominator), 1) for share in _SHARES]


_SHARES = [Fraction(str(quantile)) for quantile in QUANTILES]


def statistics_from(
    moments: Moments,
    *,
    quantiles: Sequence[float],
    outliers: Sequence[int],
    distinct: int | None,
    entropy: float | None,
    odd: Mapping[str, int],
) -> Statistics:
    """The record, from moments, order statistics (in the order of `QUANTILES`) and counts."""
    m2, unit = moments.m2, moments.unit
    rms = math.sqrt(m2 + moments.mean * moments.mean)
    return Statistics(
        mean=_plain(moments.mean / unit),
        std=_plain(moments.std / unit),
        min=_plain(moments.low),
        max=_plain(moments.high),
        abs_max=_plain(max(-moments.low, moments.high)),
        rms=_plain(rms / unit),
        l2_norm=_plain(math.sqrt(moments.n) * rms / unit),
        skewness=moments.m3 / m2**1.5 if m2**1.5 > 0 else None,
        kurtosis=moments.m4 / m2**2 - 3 if m2**2 > 0 else None,
        quantiles={f"{q:g}": _plain(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        outliers=dict(zip(OUTLIER_ORDERS, outliers, strict=True)),
        distinct_values=distinct,
        entropy=_plain(entropy) if entropy is not None else None,
        **odd,
    )


def _plain(value: float) -> float | None:
    """Without a sign on zero; None for what JSON cannot say (the l2 norm of huge float64 numbers)."""
    return value + 0.0 if math.isfinite(value) else None
