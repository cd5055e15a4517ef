"""Norms of rows and columns, and the largest elements, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Array, bits, described, encoded, norms_of, values_of

from planner.dtypes import NUMBERS
from planner.profile.types import NormSummary

WIDE = ["F32", "F64", "I32", "I64", "U32", "U64"]


def assert_norms(found: NormSummary | None, matrix: Array, axis: int) -> None:
    """Hold a summary against the norms of a matrix."""
    assert found is not None
    norms, unit = norms_of(matrix, axis)
    order = np.sort(norms)
    assert found.count == len(norms)
    summary = [found.min, found.median, found.max]
    assert summary == pytest.approx([order[place] / unit for place in (0, (len(order) - 1) // 2, -1)], rel=1e-12, abs=0)
    assert found.cv == (pytest.approx(norms.std() / norms.mean(), rel=1e-9, abs=1e-12) if norms.any() else None)
    for places, expected in ((found.smallest_at, order), (found.largest_at, order[::-1])):
        assert len(places) == len(set(places)) == min(3, len(norms))
        assert norms[list(places)] == pytest.approx(expected[:3], rel=1e-12, abs=0)


def assert_both(patterns: Array, name: str, *, chunk: int | None = None) -> None:
    matrix = values_of(patterns, name).reshape(-1, patterns.shape[-1])
    norms = described(patterns, name, chunk=chunk).norms
    assert norms is not None
    assert_norms(norms.row_summary(), matrix, 1)
    assert_norms(norms.column_summary(), matrix, 0)


def random_patterns(shape: tuple[int, ...], name: str, seed: int = 0) -> Array:
    """Any bits at all: NaN, infinities and subnormals among them."""
    width = 8 * NUMBERS[name].itemsize
    return np.random.default_rng(seed).integers(0, 2**width, shape, dtype=f"<u{width // 8}")


SHAPES = [(1, 1), (1, 9), (9, 1), (4, 7), (5, 7), (6, 8), (7, 33), (11, 3), (13, 5), (2, 3, 5), (3, 1, 4), (2, 2, 2, 3)]


@pytest.mark.parametrize("name", NUMBERS)
def test_norms_of_any_bits_are_those_of_numpy(name: str) -> None:
    for shape in SHAPES:
        # Random exponents would leave one element of a wide float to decide everything.
        normal = encoded(np.random.default_rng(1).normal(0, 30, shape), name)
        patterns = normal if name in WIDE else random_patterns(shape, name)
        for chunk in (None, 1, 7, 50):
            assert_both(patterns, name, chunk=chunk)


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64", "F8_E4M3", "I16"])
@given(data=st.data(), rows=st.integers(1, 9), columns=st.integers(1, 9), chunk=st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_norms_of_matrices_of_odd_elements(name: str, data: Any, rows: int, columns: int, chunk: int) -> None:
    drawn = data.draw(bits(name).filter(bool))
    patterns = np.resize(np.array(drawn, NUMBERS[name].pattern), (rows, columns))
    matrix = values_of(patterns, name)
    magnitudes = np.abs(matrix[np.isfinite(matrix) & (matrix != 0)])
    if len(magnitudes) and magnitudes.min() < 1e-90 * magnitudes.max():
        return  # squares of the small ones are lost, as the docstring says
    expected, unit = norms_of(matrix, 1)
    norms = described(patterns, name, chunk=chunk).norms
    assert norms is not None
    with np.errstate(over="ignore"):
        fits = np.isfinite(expected / unit).all()
    if fits:
        assert_norms(norms.row_summary(), matrix, 1)
    else:
        assert norms.row_summary() is None


@pytest.mark.parametrize("columns", [100, 4096, 8192, 8193, 20_000])
@pytest.mark.parametrize("name", ["BF16", "F16", "F32"])
def test_rows_longer_than_a_block_and_pieces_that_end_inside_them(columns: int, name: str) -> None:
    patterns = encoded(np.random.default_rng(2).normal(0, 0.1, (9, columns)), name)
    patterns[5, columns // 2] = encoded(np.nan, name)
    for chunk in (None, columns, 5 * columns, columns + 13, 3 * columns - 1):
        assert_both(patterns, name, chunk=chunk)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("BF16", [3e38, -1e38, 2.5e38]),
        ("BF16", [1e-40, 9.2e-41, 0.0]),
        ("F16", [6e-8, 1.2e-7, 6.1e-5, -6e-8]),
        ("F16", [65504.0, 6e-8, -65504.0]),
        ("F32", [3.4e38, -3e38]),
        ("F32", [1e-45, 3e-45]),
        ("F64", [1e300, -3e300, 2e299]),
        ("F64", [1e-300, 5e-301, 0.0]),
        ("F64", [5e-324, 1e-323, 5e-320]),
        ("F64", [1e-310, 1e-308]),
        ("F64", [2.0**1020, -(2.0**1019)]),
        ("F64", [1e60, 2.0**200, 2.0**199]),
        ("F64", [2.0**-200, 2.0**-201]),
    ],
)
def test_norms_at_both_ends_of_the_range(name: str, values: list[float]) -> None:
    patterns = np.resize(encoded(values, name), (7, 5))
    for chunk in (None, 3, 11):
        assert_both(patterns, name, chunk=chunk)


def test_subnormal_halves_are_squared_exactly() -> None:
    for name in ("F16", "BF16"):
        smallest = values_of(np.array([1], "<u2"), name)[0]
        norms = described(np.array([[3, 0x8004], [0, 12]], "<u2"), name).norms
        assert norms is not None
        assert (norms.row_summary().max, norms.row_summary().min) == (12 * smallest, 5 * smallest)
        assert norms.column_summary().min == 3 * smallest


def test_a_norm_that_leaves_float64_leaves_no_summary() -> None:
    huge = np.full((2, 3), 1.7e308).view("<u8")
    norms = described(huge, "F64").norms
    assert norms is not None
    assert (norms.row_summary(), norms.column_summary()) == (None, None)
    assert norms.bands("rows", 0, 2, 1) == ()
    norms = described(np.full((2, 2), 1e300).view("<u8"), "F64").norms
    assert norms.bands("rows", 0, 2, 1) == pytest.approx([2**0.5 * 1e300] * 2, rel=1e-14)
    assert norms.bands("columns", 0, 1, 2) == pytest.approx([2e300], rel=1e-14)
    assert norms.row_summary().cv == 0


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64", "F8_E4M3", "I8", "I64"])
def test_of_equal_norms_the_lowest_index_comes_first(name: str) -> None:
    heights = np.array([2, 1, 4, 1, 4, 2, 1, 4, 1, 4.0])
    patterns = encoded(np.outer(heights, [1, -1, 1, 1]), name)
    for chunk in (None, 4, 6, 16):
        rows = described(patterns, name, chunk=chunk).norms.row_summary()
        assert (rows.smallest_at, rows.largest_at) == ((1, 3, 6), (2, 4, 7))
        assert (rows.min, rows.median, rows.max) == (2, 4, 8)  # ten of them: the median is the fifth
        columns = described(patterns, name, chunk=chunk).norms.column_summary()
        assert (columns.smallest_at, columns.largest_at) == ((0, 1, 2), (0, 1, 2))
        assert columns.cv == 0


@pytest.mark.parametrize("name", NUMBERS)
def test_zeros_have_norms_without_a_variation(name: str) -> None:
    if name == "F8_E8M0":  # has no zero
        return
    rows = described(np.zeros((3, 2), NUMBERS[name].pattern), name).norms.row_summary()
    assert rows == NormSummary(count=3, min=0, median=0, max=0, cv=None, smallest_at=(0, 1, 2), largest_at=(0, 1, 2))


def test_what_is_no_matrix_has_no_norms() -> None:
    for shape in [(), (5,), (0, 3), (3, 0), (2**20 + 1, 1), (1, 2**20 + 1)]:
        assert described(np.zeros(shape, np.uint8), "I8").norms is None


# The largest elements


def largest_of(patterns: Array, name: str) -> list[tuple[int, float]]:
    values = values_of(patterns.reshape(-1), name)
    magnitudes = np.where(np.isfinite(values), np.abs(values), 0.0)
    order = np.argsort(-magnitudes, kind="stable")[:8]
    return [(int(place), float(values[place])) for place in order if magnitudes[place] > 0]


@pytest.mark.parametrize("name", NUMBERS)
@given(data=st.data(), chunk=st.integers(1, 50))
@settings(deadline=None, max_examples=25)
def test_the_largest_elements_of_any_bits_are_those_that_sorting_finds(name: str, data: Any, chunk: int) -> None:
    patterns = np.array(data.draw(bits(name)), dtype=NUMBERS[name].pattern)
    assert described(patterns, name, chunk=chunk).largest == largest_of(patterns, name)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_largest_elements_of_every_shape(name: str) -> None:
    for shape in [(), (1,), (7,), (50_000,), (70, 300), (9, 8193), (40, 10, 11)]:
        patterns = random_patterns(shape, name, seed=3)
        for chunk in (None, 12_345):
            assert described(patterns, name, chunk=chunk).largest == largest_of(patterns, name)


@pytest.mark.parametrize("name", NUMBERS)
def test_few_and_equal_and_odd_ones_among_the_largest(name: str) -> None:
    odd = [0.0, -0.0, np.nan, np.inf, -np.inf]
    for values in (odd, [*odd, 1.0], [1.0] * 30, [1.0, 2.0] * 10, [*odd, -2.0, 2.0, *[1.0] * 9], [-4.0] * 9 + [4.0]):
        patterns = encoded(values, name)
        for chunk in (None, 1, 4):
            assert described(patterns, name, chunk=chunk).largest == largest_of(patterns, name)


def test_the_most_negative_integer_is_the_largest() -> None:
    for size in (1, 2, 4, 8):
        least = -(2 ** (8 * size - 1))
        stored = np.array([[-least - 1, 5], [least, least + 1]], f"<i{size}").view(f"<u{size}")
        found = described(stored, f"I{8 * size}").largest
        if size < 8:
            assert found == [(2, least), (0, -least - 1), (3, least + 1), (1, 5)]
        else:  # one float64, so the lowest place comes first
            assert found == [(0, 2.0**63), (2, -(2.0**63)), (3, -(2.0**63)), (1, 5)]
