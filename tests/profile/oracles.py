"""What statistics must come to: numpy in float64, and exact rational arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from planner.dtypes import NUMBERS
from planner.profile import OUTLIER_ORDERS, QUANTILES, Statistics
from planner.profile.tallies import Described, Matrix, describe

__all__ = [
    "Array",
    "assert_exact",
    "bits",
    "described",
    "encoded",
    "measured",
    "norms_of",
    "values_of",
]

Array = np.ndarray[Any, Any]


def described(patterns: Array, name: str, *, chunk: int | None = None) -> Described:
    """All about a tensor of stored patterns, given in chunks of so many elements."""

    def chunks() -> Iterator[Array]:
        flat = patterns.reshape(-1)
        size = chunk or max(len(flat), 1)
        return (flat[place : place + size] for place in range(0, len(flat), size))

    return describe(chunks, Matrix.of(NUMBERS[name], patterns.shape))


def measured(patterns: Array, name: str, *, chunk: int | None = None) -> Statistics:
    """The statistics of stored patterns."""
    return described(patterns.reshape(-1), name, chunk=chunk).statistics


def encoded(values: Any, name: str) -> Array:
    """The nearest patterns, by numpy and ml_dtypes; of integers the nearest ones in range, NaN being 0."""
    array, storage = np.asarray(values, dtype=np.float64), NUMBERS[name].storage
    with np.errstate(over="ignore", invalid="ignore"):
        if storage.kind in "iu":
            limits = np.iinfo(storage)
            whole = np.clip(np.rint(np.nan_to_num(array, nan=0.0)), limits.min, limits.max)
            # The largest 64-bit integers are no float64: clipped ones would be rounded out of range.
            top = np.where(whole >= 2.0**63, limits.max if limits.max > 2**62 else 0, 0).astype(storage)
            stored = np.where(whole >= 2.0**63, top, np.where(whole >= 2.0**63, 0, whole).astype(storage))
        else:
            stored = array.astype(np.float64 if storage == np.float64 else np.float32).astype(storage)
        return np.asarray(stored).view(f"<u{storage.itemsize}")


def values_of(patterns: Array, name: str) -> Array:
    """What the patterns stand for, by numpy and ml_dtypes (which has no other way from 8 bits than float32)."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        stored = patterns.reshape(patterns.shape).view(NUMBERS[name].storage)
        return (stored.astype(np.float32) if name.startswith("F8") else stored).astype(np.float64)


def norms_of(matrix: Array, axis: int) -> tuple[Array, float]:
    """The l2 norms along an axis, what is not finite counting as zero, multiplied by a power of two; and that power.

    At the ends of float64, norms would otherwise be rounded like subnormals, or be infinite.
    """
    clean = np.where(np.isfinite(matrix), matrix, 0.0)
    largest = np.abs(clean).max(initial=0.0)
    unit = 2.0 ** -int(np.clip(np.frexp(largest)[1], -1022, 1022)) if largest else 1.0
    return np.linalg.norm(clean * unit, axis=axis), unit


def bits(name: str) -> st.SearchStrategy[list[int]]:
    """Stored patterns: any at all, few different ones, and the odd ones."""
    width = 8 * NUMBERS[name].itemsize
    odd = encoded([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e-45, 5e-324, 1e300, 1.7e308, -1.7e308, 65504], name)
    edges = [0, 1, 2**width - 1, 2 ** (width - 1), 2 ** (width - 1) - 1, 2 ** (width - 1) + 1]
    one = st.integers(0, 2**width - 1) | st.sampled_from(odd.tolist() + edges)
    crowd = st.tuples(one, st.integers(0, 40), st.lists(one, max_size=3)).map(lambda t: [t[0]] * t[1] + t[2])
    return st.lists(one, max_size=40) | crowd


def _root(square: Fraction) -> float:
    """Its square root, correctly rounded, however large or small it is."""
    with localcontext(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN):
        return float((Decimal(square.numerator) / Decimal(square.denominator)).sqrt())


def _rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _smallest_normal(name: str) -> float:
    storage: Any = NUMBERS[name].storage
    return 0.0 if storage.kind in "iu" else float(ml_dtypes.finfo(storage).smallest_normal)


def assert_exact(found: Statistics, patterns: Array, name: str) -> None:
    """Hold statistics against exact rational arithmetic."""
    values = values_of(patterns.reshape(-1), name)
    assert found.nan == np.count_nonzero(np.isnan(values))
    assert found.inf == np.count_nonzero(np.isinf(values))
    assert found.negative_inf == np.count_nonzero(values == -np.inf)
    x = sorted(Fraction(value) for value in values[np.isfinite(values)].tolist())
    n = len(x)
    if n == 0:
        assert found == Statistics(nan=found.nan, inf=found.inf, negative_inf=found.negative_inf)
        return
    assert found.negative_zeros == np.count_nonzero((values == 0) & np.signbit(values))
    assert found.subnormals == np.count_nonzero((values != 0) & (np.abs(values) < _smallest_normal(name)))
    assert found.entropy == pytest.approx(scipy.stats.entropy(list(Counter(x).values()), base=2), abs=1e-12)
    largest = float(max(-x[0], x[-1]))
    assert (found.min, found.max, found.abs_max) == (float(x[0]), float(x[-1]), largest)
    assert found.zeros == x.count(Fraction(0))
    assert found.distinct_values == len(set(x))
    for q in QUANTILES:
        rank = max(math.ceil(Fraction(str(q)) * n), 1)
        assert found.quantiles[f"{q:g}"] == float(x[rank - 1])

    mean = sum(x) / n
    m2, m3, m4 = (sum((value - mean) ** power for value in x) / n for power in (2, 3, 4))
    ulp = max(2.0**-52 * largest, 5e-324)
    assert found.mean == pytest.approx(float(mean), rel=1e-12, abs=2 * ulp)
    assert found.std == pytest.approx(_root(m2), rel=1e-9, abs=2 * ulp)
    square = sum(value * value for value in x)
    assert found.rms == pytest.approx(_root(square / n), rel=1e-12, abs=ulp)
    norm = _root(square)
    if found.l2_norm is None:
        assert norm > 1.797e308
    else:
        assert found.l2_norm == pytest.approx(norm, rel=1e-12, abs=ulp)
    for number in (found.skewness, found.kurtosis, *found.quantiles.values()):
        assert number is None or math.isfinite(number)
    if len(set(x)) == 1:
        assert (found.std, found.skewness, found.kurtosis) == (0, None, None)
        assert found.outliers == {"3": 0, "6": 0}
        return
    blur = ulp / (_root(m2) or ulp)  # what rounding the mean to a float does, in standard deviations
    if blur < 1e-4:
        skew = _root(m3 * m3 / m2**3) * (1 if m3 > 0 else -1)
        assert found.skewness == pytest.approx(skew, rel=1e-9 + 10 * blur, abs=1e-9 + 10 * blur)
        assert found.kurtosis == pytest.approx(_rounded(m4 / m2**2) - 3, rel=1e-9 + 10 * blur, abs=1e-9 + 10 * blur)
        for k in OUTLIER_ORDERS:
            slack = Fraction(1e-9 + 10 * blur)
            least, most = (
                sum((value - mean) ** 2 > (int(k) * (1 + side)) ** 2 * m2 for value in x) for side in (slack, -slack)
            )
            assert least <= found.outliers[k] <= most
