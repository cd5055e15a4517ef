"""Quantiles of wide dtypes, which a second look finds: where one bucket holds all, or a rank lies on a border."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Array, measured, values_of

from planner.profile import QUANTILES
from planner.profile.tallies import wide

FORMATS = {"F32": ("<u4", 16), "F64": ("<u8", 48)}


def assert_ordered(patterns: Array, name: str, *, chunk: int | None = None) -> None:
    """Quantiles, distinct values and entropy, by sorting."""
    values = values_of(patterns, name)
    x = np.sort(values[np.isfinite(values)])
    found = measured(patterns, name, chunk=chunk)
    ranks = [max(-(-round(1000 * q) * len(x) // 1000), 1) for q in QUANTILES]
    assert list(found.quantiles.values()) == [x[rank - 1] for rank in ranks]
    distinct, often = np.unique(x, return_counts=True)
    assert found.distinct_values == len(distinct)
    assert found.entropy == pytest.approx(scipy.stats.entropy(often, base=2), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("low_bits", [1, 16, 32, 48])
def test_values_of_one_bucket(low_bits: int, sign: int, name: str) -> None:
    kind, shift = FORMATS[name]
    upper = np.array((0x3F80 if name == "F32" else 0x3FF0) | sign << 15, kind) << np.array(shift, kind)
    random = np.random.default_rng(low_bits).integers(0, 2 ** min(low_bits, shift), 3001, dtype=kind)
    for patterns in (upper | random, np.full(3001, upper), np.append(upper | random, np.zeros(1, kind))):
        assert_ordered(patterns, name, chunk=500)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n", [1000, 1001, 999, 2000, 20])
def test_ranks_on_the_borders_of_buckets(n: int, name: str) -> None:
    kind, shift = FORMATS[name]
    place = np.arange(n)
    for border in (1, 10, 50, 250, 500, 750, 950, 990, 999):
        for off in (-1, 0, 1):  # the element of this rank is the last of its bucket, or the first
            upper = np.where(place < border * n // 1000 + off, 0x4000, 0x4001).astype(kind) << np.array(shift, kind)
            assert_ordered(np.random.default_rng(0).permutation(upper | place.astype(kind)), name)


@pytest.mark.parametrize("name", FORMATS)
def test_both_signs_and_both_zeros(name: str) -> None:
    kind = FORMATS[name][0]
    form = {"<u4": "<f4", "<u8": "<f8"}[kind]
    halves = [-3.0, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.5, 3.0]
    for counts in ([1] * 8, [0, 0, 0, 9, 0, 0, 0, 0], [0, 0, 0, 5, 5, 0, 0, 0], [5, 0, 1, 2, 2, 1, 0, 500]):
        patterns = np.repeat(np.array(halves, form), counts).view(kind)
        assert_ordered(patterns, name, chunk=3)
    all_negative_zeros = measured(np.full(10, -0.0, form).view(kind), name)
    assert (all_negative_zeros.zeros, all_negative_zeros.negative_zeros, all_negative_zeros.entropy) == (10, 10, 0)
    numbers = [all_negative_zeros.min, all_negative_zeros.mean, *all_negative_zeros.quantiles.values()]
    assert not any(np.signbit(numbers))


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_finite_takes_no_part(name: str) -> None:
    kind = FORMATS[name][0]
    patterns = np.random.default_rng(1).integers(0, 2 ** (8 * int(kind[2])), 20_000, dtype=kind)
    form = {"<u4": "<f4", "<u8": "<f8"}[kind]
    patterns[::3] = np.array(np.nan, form).view(kind)
    patterns[1::7] = np.array(-np.inf, form).view(kind)
    patterns[2::7] = np.array(np.inf, form).view(kind)
    assert_ordered(patterns, name, chunk=777)


@pytest.mark.parametrize("name", ["F32", "F64", "I32", "I64", "U64"])
@given(data=st.data(), chunk=st.integers(1, 400))
@settings(deadline=None, max_examples=25)
def test_crowds_around_a_few_patterns(name: str, data: Any, chunk: int) -> None:
    width = {"32": 32, "64": 64}[name[1:]]
    centres = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=3))
    spread = data.draw(st.sampled_from([1, 2**8, 2**16, 2**17]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    near = [centre + int(step) for centre in centres for step in random.integers(0, spread, 200)]
    patterns = np.array([pattern % 2**width for pattern in near], f"<u{width // 8}")
    if np.isfinite(values_of(patterns, name)).any():
        assert_ordered(random.permutation(patterns), name, chunk=chunk)


@pytest.mark.parametrize("name", FORMATS)
def test_the_limit_of_sorting_counts_finite_elements(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_LARGEST_SORTED", 50)
    form = {"F32": "<f4", "F64": "<f8"}[name]
    values = np.append(np.arange(50), [np.nan] * 30).astype(form).view(FORMATS[name][0])
    found = measured(values, name, chunk=9)
    assert (found.distinct_values, found.entropy) == (50, pytest.approx(np.log2(50)))
    more = measured(np.arange(51).astype(form).view(FORMATS[name][0]), name)
    assert (more.distinct_values, more.entropy) == (None, None)
    assert more.quantiles["0.5"] == 25
