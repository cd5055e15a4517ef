"""Statistics of one tensor, against numpy, scipy and exact rational arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.dtypes import FLOATS, NUMBERS, FloatDtype
from planner.profile import OUTLIER_ORDERS, QUANTILES, Statistics
from planner.profile.tallies import Matrix, describe

NAMES = list(FLOATS)
Array = np.ndarray[Any, Any]


def measured(patterns: Array, dtype: FloatDtype, *, chunk: int | None = None) -> Statistics:
    """The statistics of stored patterns, given in chunks of so many elements."""

    def chunks() -> Iterable[Array]:
        flat = patterns.reshape(-1)
        size = chunk or max(len(flat), 1)
        return (flat[place : place + size] for place in range(0, len(flat), size))

    return describe(chunks, Matrix.of(NUMBERS[dtype.name], (patterns.size,))).statistics


def encoded(values: Any, name: str) -> Array:
    dtype = FLOATS[name]
    with np.errstate(over="ignore"):
        return dtype.encode(np.asarray(values, dtype=np.float64).astype(dtype.working))


def finite_values(patterns: Array, dtype: FloatDtype) -> Array:
    values = dtype.decode(patterns.reshape(-1)).astype(np.float64)
    return values[np.isfinite(values)]


# Against numpy and scipy, on the distributions that weights have and on some that they should not


def distribution(kind: str) -> Array:
    rng = np.random.default_rng(5)
    n = 30_011
    values = {
        "normal": lambda: rng.normal(0.001, 0.03, n),
        "heavy tails": lambda: rng.standard_t(3, n) * 0.02,
        "skewed": lambda: rng.lognormal(-3, 1, n),
        "nearly constant": lambda: 1 + rng.choice([0.0, 2**-7], n, p=[0.999, 0.001]),
        "mostly zero": lambda: rng.normal(0, 1, n) * (rng.random(n) < 0.01),
        "far from zero": lambda: rng.normal(1000, 5, n),
        "uniform": lambda: rng.uniform(-1, 1, n),
        "one huge outlier": lambda: np.append(rng.normal(0, 0.02, n), 300.0),
        "tiny": lambda: rng.normal(0, 1e-6, n),
    }[kind]()
    values[:7] = [np.nan, np.inf, -np.inf, 0.0, -0.0, np.nan, 0.0]
    return np.asarray(values)


KINDS = ["normal", "heavy tails", "skewed", "nearly constant", "mostly zero", "far from zero", "uniform"]
KINDS += ["one huge outlier", "tiny"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_statistic_is_that_of_numpy_and_scipy(kind: str, name: str) -> None:
    dtype = FLOATS[name]
    patterns = encoded(distribution(kind), name)
    found = measured(patterns, dtype, chunk=4096)
    x = finite_values(patterns, dtype)
    close = {"rel": 1e-9, "abs": 1e-11}
    assert found.mean == pytest.approx(x.mean(), rel=1e-11, abs=1e-14 * np.abs(x).max())
    assert found.std == pytest.approx(x.std(ddof=0), rel=1e-11)
    assert found.skewness == pytest.approx(scipy.stats.skew(x, bias=True), **close)
    assert found.kurtosis == pytest.approx(scipy.stats.kurtosis(x, fisher=True, bias=True), **close)
    assert found.rms == pytest.approx(np.sqrt(np.mean(x * x)), rel=1e-12)
    assert found.l2_norm == pytest.approx(np.linalg.norm(x), rel=1e-12)
    assert (found.min, found.max, found.abs_max) == (x.min(), x.max(), np.abs(x).max())
    assert found.quantiles == {f"{q:g}": np.quantile(x, q, method="inverted_cdf") for q in QUANTILES}
    assert found.outliers == {k: np.count_nonzero(np.abs(x - x.mean()) > int(k) * x.std()) for k in OUTLIER_ORDERS}
    assert (found.zeros, found.nan, found.inf) == (np.count_nonzero(x == 0), 2, 2)
    assert found.distinct_values == len(set(x.tolist()))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 19, 20, 99, 100, 101, 999, 1000, 1001, 2000])
@pytest.mark.parametrize("name", ["BF16", "F32"])
def test_a_quantile_is_the_lower_order_statistic_at_every_size(n: int, name: str) -> None:
    dtype = FLOATS[name]
    patterns = encoded(np.random.default_rng(n).normal(0, 1, n), name)
    x = finite_values(patterns, dtype)
    found = measured(patterns, dtype, chunk=64)
    assert found.quantiles == {f"{q:g}": np.quantile(x, q, method="inverted_cdf") for q in QUANTILES}
    assert set(found.quantiles.values()) <= set(x.tolist())


# Against exact arithmetic, on any bits at all


def root(square: Fraction) -> float:
    """Its square root, correctly rounded, however large or small it is."""
    with localcontext(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN):
        return float((Decimal(square.numerator) / Decimal(square.denominator)).sqrt())


def rounded(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def assert_exact(found: Statistics, patterns: Array, dtype: FloatDtype) -> None:
    with np.errstate(invalid="ignore"):  # signalling NaN
        values = dtype.decode(patterns.reshape(-1)).astype(np.float64)
    assert found.nan == np.count_nonzero(np.isnan(values))
    assert found.inf == np.count_nonzero(np.isinf(values))
    assert found.negative_inf == np.count_nonzero(values == -np.inf)
    x = sorted(Fraction(value) for value in values[np.isfinite(values)].tolist())
    n = len(x)
    if n == 0:
        assert found == Statistics(nan=found.nan, inf=found.inf, negative_inf=found.negative_inf)
        return
    assert found.negative_zeros == np.count_nonzero((values == 0) & np.signbit(values))
    smallest = float(ml_dtypes.finfo(dtype.storage).smallest_normal)
    assert found.subnormals == np.count_nonzero((values != 0) & (np.abs(values) < smallest))
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
    assert found.std == pytest.approx(root(m2), rel=1e-9, abs=2 * ulp)
    square = sum(value * value for value in x)
    assert found.rms == pytest.approx(root(square / n), rel=1e-12, abs=ulp)
    norm = root(square)
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
    blur = ulp / (root(m2) or ulp)  # what rounding the mean to a float does, in standard deviations
    if blur < 1e-4:
        skew = root(m3 * m3 / m2**3) * (1 if m3 > 0 else -1)
        assert found.skewness == pytest.approx(skew, rel=1e-9 + 10 * blur, abs=1e-9 + 10 * blur)
        assert found.kurtosis == pytest.approx(rounded(m4 / m2**2) - 3, rel=1e-9 + 10 * blur, abs=1e-9 + 10 * blur)
        for k in OUTLIER_ORDERS:
            slack = Fraction(1e-9 + 10 * blur)
            least, most = (
                sum((value - mean) ** 2 > (int(k) * (1 + side)) ** 2 * m2 for value in x) for side in (slack, -slack)
            )
            assert least <= found.outliers[k] <= most


def bits(name: str) -> st.SearchStrategy[list[int]]:
    """Stored patterns: any at all, few different ones, and the odd ones."""
    width = 8 * FLOATS[name].itemsize
    odd = encoded([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e-45, 5e-324, 1e300, 1.7e308, -1.7e308, 65504], name)
    one = st.integers(0, 2**width - 1) | st.sampled_from(odd.tolist())
    crowd = st.tuples(one, st.integers(0, 40), st.lists(one, max_size=3)).map(lambda t: [t[0]] * t[1] + t[2])
    return st.lists(one, max_size=40) | crowd


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), chunk=st.integers(1, 50))
@settings(deadline=None, max_examples=150)
def test_any_bits_at_all_are_described_exactly(name: str, data: Any, chunk: int) -> None:
    dtype = FLOATS[name]
    patterns = np.array(data.draw(bits(name)), dtype=dtype.pattern)
    assert_exact(measured(patterns, dtype, chunk=chunk), patterns, dtype)


@pytest.mark.parametrize(
    "values",
    [
        [1e300, -1e300, 3.0],
        [1.7e308, 1.7e308, -1.7e308],
        [2.0**1023, 1.0],
        [1.7976931348623157e308] * 5,
        [1.7976931348623157e308, 1e-300],
        [5e-324, 1e-323],
        [5e-324],
        [1e-310, -1e-310, 2e-310],
        [1e308] * 30 + [-1e308],
    ],
)
def test_float64_at_both_ends_of_its_range_does_not_become_nonsense(values: list[float]) -> None:
    patterns = encoded(values, "F64")
    assert_exact(measured(patterns, FLOATS["F64"]), patterns, FLOATS["F64"])


def test_numbers_that_agree_in_all_but_the_last_bit_have_the_right_deviation() -> None:
    above = np.nextafter(1, 2)
    found = measured(encoded([1.0, above], "F64"), FLOATS["F64"])
    assert found.std == (above - 1) / 2
    found = measured(encoded([1.0] * 99 + [above], "F64"), FLOATS["F64"])
    assert found.std == pytest.approx((above - 1) * math.sqrt(0.01 * 0.99), rel=1e-9)
    assert found.outliers == {"3": 1, "6": 1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.0, 0.1, 1e-7])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_equal_numbers_do_not_deviate(value: float, n: int, name: str) -> None:
    dtype = FLOATS[name]
    patterns = encoded([value] * n, name)
    stored = float(dtype.decode(patterns)[0])
    found = measured(patterns, dtype, chunk=7)
    assert (found.mean, found.std, found.min, found.max) == (stored, 0, stored, stored)
    assert (found.skewness, found.kurtosis) == (None, None)
    assert found.outliers == {"3": 0, "6": 0}
    assert found.distinct_values == 1
    assert math.copysign(1, found.min or 0.0) == (-1 if value < 0 else 1)  # no minus on a zero


@pytest.mark.parametrize("name", NAMES)
def test_the_zeros_of_both_signs_are_one_value_and_both_counted(name: str) -> None:
    found = measured(encoded([0.0, -0.0, 0.0, 1.0], name), FLOATS[name])
    assert (found.zeros, found.distinct_values) == (3, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, -np.inf, np.nan]])
def test_where_nothing_is_finite_there_is_nothing_to_say(values: list[float], name: str) -> None:
    found = measured(encoded(values, name), FLOATS[name])
    assert (found.mean, found.std, found.min, found.max, found.l2_norm, found.skewness) == (None,) * 6
    assert (found.nan, found.inf) == (np.isnan(values).sum(), np.isinf(values).sum())


@pytest.mark.parametrize("name", NAMES)
def test_a_scalar_is_a_tensor_of_one_element(name: str) -> None:
    found = measured(encoded(2.5, name), FLOATS[name])
    assert (found.mean, found.rms, found.quantiles["0.5"]) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 7, 1000, 30_010])
def test_how_a_tensor_is_cut_does_not_matter(chunk: int, name: str) -> None:
    patterns = encoded(distribution("heavy tails")[: 300 * chunk], name)
    whole, cut = measured(patterns, FLOATS[name]), measured(patterns, FLOATS[name], chunk=chunk)
    if FLOATS[name].tabulable:
        assert cut == whole
        return
    exact = {"min", "max", "abs_max", "zeros", "nan", "inf", "quantiles", "outliers", "distinct_values"}
    assert cut.model_dump(include=exact) == whole.model_dump(include=exact)
    rest, other = cut.model_dump(exclude=exact), whole.model_dump(exclude=exact)
    assert rest == pytest.approx(other, rel=1e-10, abs=1e-13)


def test_distinct_values_of_a_large_wide_tensor_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.profile.tallies.wide._LARGEST_SORTED", 100)
    values = np.arange(101)
    assert measured(encoded(values[:100], "F32"), FLOATS["F32"]).distinct_values == 100
    assert measured(encoded(values, "F32"), FLOATS["F32"]).distinct_values is None
    assert measured(encoded(values, "BF16"), FLOATS["BF16"]).distinct_values == 101


@given(st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=30))
@settings(deadline=None)
@example([1.0, 2.0])
def test_the_same_values_have_the_same_statistics_in_every_dtype(values: list[float]) -> None:
    narrow = measured(encoded(values, "F16"), FLOATS["F16"]).model_dump(exclude={"subnormals"})
    for name in ("F32", "F64"):
        wide = measured(encoded(values, name), FLOATS[name]).model_dump()
        for field, value in narrow.items():
            exactly = value is None or isinstance(value, dict)
            assert wide[field] == (value if exactly else pytest.approx(value, rel=1e-6, abs=1e-6))


@pytest.mark.parametrize(("name", "signalling"), [("BF16", 0x7F81), ("F16", 0x7C01), ("F32", 0x7F800001)])
def test_a_signalling_nan_is_counted_without_a_warning(name: str, signalling: int) -> None:
    patterns = encoded([1.0, 2.0], name)
    patterns[0] = signalling
    found = measured(patterns, FLOATS[name])
    assert (found.nan, found.mean) == (1, 2.0)
