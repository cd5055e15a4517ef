"""The elements beyond a quantile, against numpy's order statistics."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import Array, rewritten

from planner.dtypes import FLOATS, NUMBERS
from planner.operations import Step, ValueRanges, Zero, beyond_quantile_of_counts, beyond_quantile_of_values
from planner.operations.base import ANYWHERE

Of = Literal["magnitude", "value"]
Side = Literal["above", "below"]
SHARES = st.integers(0, 1024).map(lambda part: part / 1024)  # n·q is exact, so numpy's rounding plays no part
EACH = pytest.mark.parametrize(
    ("of", "side"), [(of, side) for of in ("magnitude", "value") for side in ("above", "below")]
)
FEW = st.lists(st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, np.inf, -np.inf]), min_size=1, max_size=60)


def expected(values: Array, quantile: float, of: Of, side: Side) -> tuple[float, Array]:
    keys = np.abs(values) if of == "magnitude" else values
    threshold = np.quantile(keys, quantile, method="inverted_cdf")
    return float(threshold), (keys >= threshold) if side == "above" else (keys <= threshold)


@EACH
@given(values=FEW, quantile=SHARES)
@settings(deadline=None)
def test_ties_are_in_and_counted(of: Of, side: Side, values: list[float], quantile: float) -> None:
    array = np.array(values, dtype=np.float32)
    threshold, meant = expected(array.astype(np.float64), quantile, of, side)
    found = beyond_quantile_of_values(array, quantile, of=of, side=side)
    assert found.threshold == threshold
    assert np.array_equal(found.ranges.mask(array, ANYWHERE), meant)
    assert found.count == np.count_nonzero(meant)


@EACH
@pytest.mark.parametrize("name", ["F16", "BF16"])
@given(quantile=SHARES, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=15)
def test_counts_say_what_the_values_say(of: Of, side: Side, name: str, quantile: float, seed: int) -> None:
    dtype = FLOATS[name]
    rng = np.random.default_rng(seed)
    stored = dtype.encode(rng.normal(0, 0.02, 3001).astype(np.float32))
    stored[:3] = dtype.encode(np.array([np.nan, np.inf, -np.nan], dtype=np.float32))
    values = dtype.decode(stored)
    counts = np.bincount(stored, minlength=2**16)
    found = beyond_quantile_of_counts(counts, dtype, quantile, of=of, side=side)
    assert found == beyond_quantile_of_counts(counts.astype(np.uint16), NUMBERS[name], quantile, of=of, side=side)
    assert found == beyond_quantile_of_values(values, quantile, of=of, side=side)
    _, meant = expected(values[~np.isnan(values)].astype(np.float64), quantile, of, side)
    assert found.count == np.count_nonzero(meant)
    changed = rewritten([Step(Zero(), found.ranges)], dtype, stored)
    zeroed = ~np.isnan(values)
    zeroed[zeroed] = meant
    assert np.array_equal(changed, np.where(zeroed, 0, stored))


@EACH
@pytest.mark.parametrize("name", ["F32", "F64"])
def test_wide_values_are_told_apart_to_the_last_bit(of: Of, side: Side, name: str) -> None:
    rng = np.random.default_rng(2)
    values = (1 + rng.integers(-5, 5, (40, 25)) * np.finfo(FLOATS[name].working).eps).astype(FLOATS[name].working)
    values *= rng.choice([-1, 1], values.shape)
    found = beyond_quantile_of_values(values, 0.75, of=of, side=side)
    threshold, meant = expected(values.astype(np.float64), 0.75, of, side)
    assert found.threshold == threshold
    assert np.array_equal(found.ranges.mask(values, ANYWHERE), meant)
    assert found.count == np.count_nonzero(meant)


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
def test_eight_bit_counts_do_too(name: str) -> None:
    dtype = NUMBERS[name]
    counts = np.random.default_rng(1).integers(0, 5, 256)
    values = np.repeat(dtype.decode_float64(dtype.all_patterns()), counts)
    found = beyond_quantile_of_counts(counts, dtype, 0.875, of="magnitude", side="above")
    assert found == beyond_quantile_of_values(values, 0.875, of="magnitude", side="above")
    assert found.count == np.count_nonzero(np.abs(values) >= found.threshold)


def test_a_share_is_the_decimal_number_that_it_is_written_as() -> None:
    values = np.arange(1.0, 101)
    assert 0.07 * 100 > 7  # in float64; the quantile is the seventh value all the same
    assert beyond_quantile_of_values(values, 0.07, of="value", side="below").count == 7
    assert beyond_quantile_of_values(values, 0.9, of="value", side="above").count == 11  # the 90th itself is in
    assert beyond_quantile_of_values(values, 0.29, of="value", side="below").count == 29


def test_the_ends() -> None:
    values = np.array([3.0, -4, 0, 1])
    both = [beyond_quantile_of_values(values, 0, of="magnitude", side=side) for side in ("above", "below")]  # type: ignore[arg-type]
    assert [found.count for found in both] == [4, 1]
    assert both[1].ranges == ValueRanges(((-0.0, 0.0),))
    assert beyond_quantile_of_values(values, 1, of="value", side="above").ranges == ValueRanges(((3.0, np.inf),))
    assert beyond_quantile_of_values(values, 1, of="magnitude", side="above").count == 1


def test_where_there_is_no_number_nothing_is_meant() -> None:
    for values in (np.array([]), np.full(3, np.nan)):
        found = beyond_quantile_of_values(values, 0.5, of="value", side="above")
        assert (found.count, found.threshold, found.ranges) == (0, None, ValueRanges(()))
    empty = beyond_quantile_of_counts(np.zeros(2**16, np.int64), FLOATS["BF16"], 0.5, of="value", side="above")
    assert empty.count == 0


def test_nonsense_is_refused() -> None:
    for quantile in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            beyond_quantile_of_values(np.ones(3), quantile, of="value", side="above")
    with pytest.raises(ValueError, match="65536 patterns, not 256"):
        beyond_quantile_of_counts(np.ones(256, np.int64), FLOATS["BF16"], 0.5, of="value", side="above")
