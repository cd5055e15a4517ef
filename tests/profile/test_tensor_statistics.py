"""Statistics of one tensor, against numpy, scipy and exact rational arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import Array, assert_exact, bits, encoded, measured, values_of

from planner.dtypes import FLOATS, NUMBERS
from planner.profile import OUTLIER_ORDERS, QUANTILES, Statistics
from planner.profile.statistics import ranks_of

NAMES = list(FLOATS)


def finite_values(patterns: Array, name: str) -> Array:
    values = values_of(patterns.reshape(-1), name)
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


def spread(kind: str, name: str) -> Array:
    """The distribution as stored, for integers stretched over a part of their range."""
    bits = 8 * NUMBERS[name].itemsize
    stretch = 2.0 ** min(bits - 2, 40) if NUMBERS[name].integer else 1.0
    return encoded(distribution(kind) * stretch, name)


@pytest.mark.filterwarnings("ignore:Precision loss occurred in moment calculation")  # scipy's, of constants
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_statistic_is_that_of_numpy_and_scipy(kind: str, name: str) -> None:
    patterns = spread(kind, name)
    found = measured(patterns, name, chunk=4096)
    x = finite_values(patterns, name)
    close = {"rel": 1e-9, "abs": 1e-11}
    assert found.mean == pytest.approx(x.mean(), rel=1e-11, abs=1e-14 * np.abs(x).max())
    if len(set(x.tolist())) > 1:
        assert found.std == pytest.approx(x.std(ddof=0), rel=1e-11)
        assert found.skewness == pytest.approx(scipy.stats.skew(x, bias=True), **close)
        assert found.kurtosis == pytest.approx(scipy.stats.kurtosis(x, fisher=True, bias=True), **close)
    else:
        assert (found.std, found.skewness, found.kurtosis) == (0, None, None)
    assert found.rms == pytest.approx(np.sqrt(np.mean(x * x)), rel=1e-12)
    assert found.l2_norm == pytest.approx(np.linalg.norm(x), rel=1e-12)
    assert (found.min, found.max, found.abs_max) == (x.min(), x.max(), np.abs(x).max())
    assert found.quantiles == {f"{q:g}": np.quantile(x, q, method="inverted_cdf") for q in QUANTILES}
    assert found.outliers == {k: np.count_nonzero(np.abs(x - x.mean()) > int(k) * x.std()) for k in OUTLIER_ORDERS}
    values = values_of(patterns, name)
    odd = (np.count_nonzero(x == 0), np.isnan(values).sum(), np.isinf(values).sum(), (values == -np.inf).sum())
    assert (found.zeros, found.nan, found.inf, found.negative_inf) == odd
    assert found.negative_zeros == np.count_nonzero((values == 0) & np.signbit(values))
    distinct, often = np.unique(x, return_counts=True)
    assert found.distinct_values == len(distinct)
    assert found.entropy == pytest.approx(scipy.stats.entropy(often, base=2), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 19, 20, 99, 100, 101, 999, 1000, 1001, 2000])
@pytest.mark.parametrize("name", ["BF16", "F32"])
def test_a_quantile_is_the_lower_order_statistic_at_every_size(n: int, name: str) -> None:
    patterns = encoded(np.random.default_rng(n).normal(0, 1, n), name)
    x = finite_values(patterns, name)
    found = measured(patterns, name, chunk=64)
    assert found.quantiles == {f"{q:g}": np.quantile(x, q, method="inverted_cdf") for q in QUANTILES}
    assert set(found.quantiles.values()) <= set(x.tolist())


# Against exact arithmetic, on any bits at all


@pytest.mark.parametrize("name", NUMBERS)
@given(data=st.data(), chunk=st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_any_bits_at_all_are_described_exactly(name: str, data: Any, chunk: int) -> None:
    patterns = np.array(data.draw(bits(name)), dtype=NUMBERS[name].pattern)
    assert_exact(measured(patterns, name, chunk=chunk), patterns, name)


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
    assert_exact(measured(patterns, "F64"), patterns, "F64")


def test_numbers_that_agree_in_all_but_the_last_bit_have_the_right_deviation() -> None:
    above = np.nextafter(1, 2)
    found = measured(encoded([1.0, above], "F64"), "F64")
    assert found.std == (above - 1) / 2
    found = measured(encoded([1.0] * 99 + [above], "F64"), "F64")
    assert found.std == pytest.approx((above - 1) * math.sqrt(0.01 * 0.99), rel=1e-9)
    assert found.outliers == {"3": 1, "6": 1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.0, 0.1, 1e-7])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_equal_numbers_do_not_deviate(value: float, n: int, name: str) -> None:
    patterns = encoded([value] * n, name)
    stored = float(values_of(patterns, name)[0])
    found = measured(patterns, name, chunk=7)
    assert (found.mean, found.std, found.min, found.max) == (stored, 0, stored, stored)
    assert (found.skewness, found.kurtosis) == (None, None)
    assert found.outliers == {"3": 0, "6": 0}
    assert found.distinct_values == 1
    assert math.copysign(1, found.min or 0.0) == (-1 if value < 0 else 1)  # no minus on a zero


@pytest.mark.parametrize("name", NAMES)
def test_the_zeros_of_both_signs_are_one_value_and_both_counted(name: str) -> None:
    found = measured(encoded([0.0, -0.0, 0.0, 1.0], name), name)
    assert (found.zeros, found.distinct_values) == (3, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", [[], [np.nan], [np.inf, -np.inf, np.nan]])
def test_where_nothing_is_finite_there_is_nothing_to_say(values: list[float], name: str) -> None:
    found = measured(encoded(values, name), name)
    assert (found.mean, found.std, found.min, found.max, found.l2_norm, found.skewness) == (None,) * 6
    assert (found.nan, found.inf) == (np.isnan(values).sum(), np.isinf(values).sum())


@pytest.mark.parametrize("name", NAMES)
def test_a_scalar_is_a_tensor_of_one_element(name: str) -> None:
    found = measured(encoded(2.5, name), name)
    assert (found.mean, found.rms, found.quantiles["0.5"]) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("chunk", [1, 7, 1000, 30_010])
def test_how_a_tensor_is_cut_does_not_matter(chunk: int, name: str) -> None:
    patterns = spread("heavy tails", name)[: 300 * chunk]
    whole, cut = measured(patterns, name), measured(patterns, name, chunk=chunk)
    if NUMBERS[name].tabulable:
        assert cut == whole
        return
    exact = {"min", "max", "abs_max", "zeros", "nan", "inf", "quantiles", "outliers", "distinct_values"}
    assert cut.model_dump(include=exact) == whole.model_dump(include=exact)
    assert cut.mean == pytest.approx(whole.mean, rel=1e-11, abs=1e-14 * whole.abs_max)
    rest, other = cut.model_dump(exclude=exact | {"mean"}), whole.model_dump(exclude=exact | {"mean"})
    assert rest == pytest.approx(other, rel=1e-10, abs=1e-13)


def test_distinct_values_of_a_large_wide_tensor_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.profile.tallies.wide._LARGEST_SORTED", 100)
    values = np.arange(101)
    assert measured(encoded(values[:100], "F32"), "F32").distinct_values == 100
    assert measured(encoded(values, "F32"), "F32").distinct_values is None
    assert measured(encoded(values, "BF16"), "BF16").distinct_values == 101


@given(st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=30))
@settings(deadline=None)
@example([1.0, 2.0])
def test_the_same_values_have_the_same_statistics_in_every_dtype(values: list[float]) -> None:
    narrow = measured(encoded(values, "F16"), "F16").model_dump(exclude={"subnormals"})
    for name in ("F32", "F64"):
        wide = measured(encoded(values, name), name).model_dump()
        for field, value in narrow.items():
            exactly = value is None or isinstance(value, dict)
            assert wide[field] == (value if exactly else pytest.approx(value, rel=1e-6, abs=1e-6))


@pytest.mark.parametrize(("name", "signalling"), [("BF16", 0x7F81), ("F16", 0x7C01), ("F32", 0x7F800001)])
def test_a_signalling_nan_is_counted_without_a_warning(name: str, signalling: int) -> None:
    patterns = encoded([1.0, 2.0], name)
    patterns[0] = signalling
    found = measured(patterns, name)
    assert (found.nan, found.mean) == (1, 2.0)


@pytest.mark.parametrize("name", ["I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"])
def test_integers_at_both_ends_of_their_range(name: str) -> None:
    limits = np.iinfo(NUMBERS[name].storage)
    patterns = np.array([limits.min, limits.max, 0, 1, limits.max], limits.dtype).view(NUMBERS[name].pattern)
    found = measured(patterns, name, chunk=2)
    assert_exact(found, patterns, name)
    assert (found.min, found.max) == (float(limits.min), float(limits.max))
    assert (found.subnormals, found.negative_zeros, found.nan, found.inf) == (0, 0, 0, 0)


def test_integers_beyond_2_to_the_53_are_described_as_the_float64_they_round_to() -> None:
    values = [2**53, 2**53 + 1, 2**53 + 2, 2**53 + 3, -(2**53) - 1, 2**63 - 1]
    found = measured(np.array(values, "<i8").view("<u8"), "I64")
    assert found.distinct_values == 5  # the first two are one float64
    assert (found.min, found.max) == (-(2.0**53), 2.0**63)
    assert found.quantiles["0.5"] == 2.0**53
    assert measured(np.array([2**64 - 1, 2**64 - 1025], "<u8"), "U64").max == 2.0**64
    assert measured(np.array([2**64 - 1025], "<u8"), "U64").max == 2.0**64 - 2048


@pytest.mark.parametrize("name", NUMBERS)
def test_no_elements_and_one(name: str) -> None:
    assert measured(np.zeros(0, NUMBERS[name].pattern), name) == Statistics()
    one = np.array(1, NUMBERS[name].pattern)
    assert_exact(measured(one, name), one, name)
    again = np.full(1000, 1, NUMBERS[name].pattern)
    assert_exact(measured(again, name, chunk=7), again, name)


@pytest.mark.parametrize("n", [1, 7, 1000, 10**10, 10**10 + 1, 3 * 10**12, 9060143321837000])
def test_ranks_are_exact_at_any_size(n: int) -> None:
    tenths_of_a_percent = [1, 10, 50, 250, 500, 750, 950, 990, 999]
    assert ranks_of(n) == [max(-(-share * n // 1000), 1) for share in tenths_of_a_percent]
