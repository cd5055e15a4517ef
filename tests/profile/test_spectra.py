"""The spectrum of one matrix, against scipy and against matrices whose spectrum is known."""

from __future__ import annotations

import itertools
import math
import sys
import tracemalloc
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import ExtraMissing
from planner.profile import spectra
from planner.profile.spectra import LEADING, Rows, Spectrum, spectrum_of

Array = np.ndarray[Any, Any]


def blocks_of(matrix: Array, *heights: int) -> Rows:
    """The matrix in blocks of so many rows, over and over."""

    def rows() -> Iterable[Array]:
        top = 0
        for height in itertools.cycle(heights or (max(len(matrix), 1),)):
            if top >= len(matrix):
                return
            yield matrix[top : top + height]
            top += height

    return rows


def measured(matrix: Array, *heights: int, seed: int = 0) -> Spectrum:
    found = spectrum_of(blocks_of(matrix, *heights), matrix.shape, seed=seed)
    assert found is not None
    return found


def with_singular_values(values: Array, rows: int, columns: int) -> Array:
    rng = np.random.default_rng(7)
    left, _ = np.linalg.qr(rng.standard_normal((rows, len(values))))
    right, _ = np.linalg.qr(rng.standard_normal((columns, len(values))))
    return np.asarray((left * values) @ right.T)


def matrix_of(kind: str, rows: int, columns: int) -> Array:
    rng = np.random.default_rng(11)
    return {
        "normal": lambda: rng.standard_normal((rows, columns)),
        "Student": lambda: rng.standard_t(2.5, (rows, columns)),
        "Pareto": lambda: rng.pareto(3, (rows, columns)) * rng.choice([-1, 1], (rows, columns)),
        "low rank and noise": lambda: (
            rng.standard_normal((rows, 12)) @ rng.standard_normal((12, columns))
            + 0.05 * rng.standard_normal((rows, columns))
        ),
        "low rank": lambda: rng.standard_normal((rows, 12)) @ rng.standard_normal((12, columns)),
        "power law": lambda: with_singular_values(np.arange(1, min(rows, columns) + 1.0) ** -0.7, rows, columns),
    }[kind]()


KINDS = ["normal", "Student", "Pareto", "low rank and noise", "low rank", "power law"]


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small enough for the SVD of the whole, and panels are small."""
    monkeypatch.setattr(spectra, "_WHOLE", 4000)


@pytest.fixture
def randomised(monkeypatch: pytest.MonkeyPatch, summed: None) -> None:
    """Nothing is small enough to be exact, and the sketch is small beside the matrix."""
    monkeypatch.setattr(spectra, "_EXACT_SIDE", 0)
    monkeypatch.setattr(spectra, "_KNOWN", 60)
    monkeypatch.setattr(spectra, "_OVERSAMPLES", 60)


# Exact, against scipy

SHAPES = [(1, 1), (1, 257), (257, 1), (40, 40), (300, 90), (90, 300), (700, 13), (13, 700)]


def check_exact(found: Spectrum, matrix: Array, within: float) -> None:
    true = scipy.linalg.svdvals(matrix)
    assert found.method == "exact"
    assert found.known == len(true)
    assert found.singular_values == pytest.approx(true[:LEADING], rel=within)
    assert found.spectral_norm == found.singular_values[0]
    assert found.stable_rank == pytest.approx(np.linalg.norm(matrix) ** 2 / true[0] ** 2, rel=1e-10)
    rank = math.exp(scipy.stats.entropy(true / true.sum()))
    assert found.effective_rank == pytest.approx(rank, rel=1e-10)
    assert found.effective_rank_at_least == found.effective_rank == found.effective_rank_at_most


@pytest.mark.parametrize("shape", SHAPES)
def test_the_svd_of_the_whole_is_that_of_scipy(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).standard_normal(shape)
    check_exact(measured(matrix, 7), matrix, 1e-12)
    single = matrix.astype(np.float32)
    check_exact(measured(single, 7), single.astype(np.float64), 1e-12)


@pytest.mark.parametrize("shape", [*SHAPES, (700, 1100), (1100, 700)])
def test_the_gram_matrix_gives_the_same(shape: tuple[int, int], summed: None) -> None:
    matrix = np.random.default_rng(1).standard_normal(shape)
    check_exact(measured(matrix, 7), matrix, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_does_for_every_kind_of_spectrum(kind: str, summed: None) -> None:
    matrix = matrix_of(kind, 250, 400)
    true = scipy.linalg.svdvals(matrix)
    assert measured(matrix, 64).singular_values == pytest.approx(true[:LEADING], rel=1e-10)


@pytest.mark.parametrize("way", ["whole", "summed"])
def test_what_rounding_leaves_of_a_deficient_rank_counts_as_zero(way: str, request: pytest.FixtureRequest) -> None:
    if way == "summed":
        request.getfixturevalue("summed")
    values = np.array([5.0, 3.0, 1.0, 0.5])
    found = measured(with_singular_values(values, 120, 200), 32)
    assert found.singular_values == pytest.approx([*values, *[0] * 6], rel=1e-10, abs=0)
    assert 0 < found.resolution < 1e-5
    assert found.effective_rank == pytest.approx(math.exp(scipy.stats.entropy(values / values.sum())))
    assert found.tail_exponent is None


def test_equal_singular_values_have_full_rank_and_no_tail() -> None:
    rotation = np.linalg.qr(np.random.default_rng(3).standard_normal((60, 60)))[0]
    for found in (measured(3 * np.eye(60)), measured(3 * rotation)):
        assert found.singular_values == pytest.approx([3] * LEADING, rel=1e-12)
        assert (found.stable_rank, found.effective_rank) == pytest.approx((60, 60))
        assert (found.tail_exponent, found.tail_values, found.tail_distance) == (None, None, None)


def test_a_constant_matrix_has_rank_one() -> None:
    found = measured(np.full((30, 50), -0.25))
    assert found.spectral_norm == pytest.approx(0.25 * math.sqrt(1500))
    assert (found.stable_rank, found.effective_rank) == pytest.approx((1, 1))
    assert found.singular_values[1:] == (0,) * 9


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_small_matrices_of_whole_numbers(m: int, n: int, height: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).integers(-3, 4, (m, n)).astype(np.float32)
    found = measured(matrix, height)
    true = scipy.linalg.svdvals(matrix.astype(np.float64))
    assert found.singular_values == pytest.approx(true[:LEADING], rel=1e-10, abs=1e-13)
    if found.stable_rank is not None and found.effective_rank is not None:
        rank = np.linalg.matrix_rank(matrix.astype(np.float64))
        assert 1 - 1e-12 <= found.stable_rank <= rank + 1e-9
        assert 1 - 1e-12 <= found.effective_rank <= rank + 1e-9
    else:
        assert not matrix.any()


# Randomised, against scipy


def check_randomised(found: Spectrum, matrix: Array, within: float = 0.01) -> None:
    true = scipy.linalg.svdvals(matrix)
    assert found.method == "randomised"
    assert found.known < len(true)
    assert found.singular_values == pytest.approx(true[:LEADING], rel=within)
    assert all(np.array(found.singular_values) <= true[:LEADING] * (1 + 1e-9))
    assert found.stable_rank == pytest.approx(np.linalg.norm(matrix) ** 2 / true[0] ** 2, rel=2 * within)
    assert found.effective_rank is None
    true = np.where(true < found.resolution, 0, true)
    rank = math.exp(scipy.stats.entropy(true / true.sum()))
    assert found.effective_rank_at_least is not None
    assert found.effective_rank_at_most is not None
    assert found.effective_rank_at_least <= rank * (1 + 1e-6)
    assert found.effective_rank_at_most >= rank * (1 - 1e-6)
    assert found.effective_rank_at_most <= len(true)


@pytest.mark.parametrize("shape", [(600, 900), (900, 600)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_randomised_svd_is_within_one_percent_of_scipy(kind: str, shape: tuple[int, int], randomised: None) -> None:
    matrix = matrix_of(kind, *shape).astype(np.float32)
    check_randomised(measured(matrix, 128), matrix.astype(np.float64))


def test_so_it_is_on_a_larger_matrix_with_the_sketch_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "_WHOLE", 2**18)
    monkeypatch.setattr(spectra, "_EXACT_SIDE", 1024)
    matrix = np.random.default_rng(2).standard_normal((1500, 2200), dtype=np.float32)
    check_randomised(measured(matrix, 400), matrix.astype(np.float64), 1e-4)


def test_the_seed_moves_a_randomised_spectrum_and_nothing_else_does(randomised: None) -> None:
    matrix = matrix_of("normal", 400, 300)
    first = measured(matrix, 50, seed=1)
    np.random.default_rng().standard_normal(3)
    assert measured(matrix, 50, seed=1) == first
    assert measured(matrix, 50, seed=2) != first
    assert measured(matrix, 50, seed=2).singular_values == pytest.approx(first.singular_values, rel=0.01)


def test_the_bounds_of_the_effective_rank_are_attained(randomised: None) -> None:
    """All unknown values equal: the upper bound. As many as possible as large as the last known: the lower."""
    even = np.concatenate([np.linspace(9, 5, 60), np.full(140, 2.0)])
    steep = np.concatenate([np.linspace(9, 5, 50), np.full(40, 4.0)])
    for values, bound in ((even, "effective_rank_at_most"), (steep, "effective_rank_at_least")):
        found = measured(with_singular_values(values, 200, 210), 30)
        assert getattr(found, bound) == pytest.approx(math.exp(scipy.stats.entropy(values / values.sum())), rel=1e-6)


def test_nothing_is_unknown_once_the_values_are_zero(randomised: None) -> None:
    values = np.array([5.0, 3.0, 1.0, 0.5])
    found = measured(with_singular_values(values, 200, 210), 30)
    expected = pytest.approx(math.exp(scipy.stats.entropy(values / values.sum())))
    assert (found.effective_rank_at_least, found.effective_rank_at_most) == (expected, expected)


def test_without_scikit_learn_only_the_largest_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.utils.extmath", None)
    monkeypatch.setattr(spectra, "_WHOLE", 100)
    monkeypatch.setattr(spectra, "_EXACT_SIDE", 20)
    assert measured(np.eye(20)).known == 20

    def unread() -> Iterable[Array]:
        raise AssertionError("read although nothing can come of it")

    with pytest.raises(ExtraMissing, match="scikit-learn") as caught:
        spectrum_of(unread, (21, 21))
    assert "[spectra]" in caught.value.hint


# The tail


def brute_force_tail(eigenvalues: Array) -> tuple[float, float, int, float]:
    """(alpha, λ_min, how many, distance), by scipy's own fit and test of a Pareto distribution."""
    best: tuple[float, float, int, float] | None = None
    for lowest in eigenvalues:
        tail = eigenvalues[eigenvalues >= lowest]
        if len(tail) < 10:
            continue
        shape, _, _ = scipy.stats.pareto.fit(tail, floc=0, fscale=lowest)
        distance = scipy.stats.kstest(tail, scipy.stats.pareto(shape, scale=lowest).cdf).statistic
        if best is None or distance < best[3]:
            best = 1 + shape, lowest, len(tail), distance
    assert best is not None
    return best


@pytest.mark.parametrize("kind", ["normal", "Student", "power law"])
def test_the_tail_is_the_one_that_scipy_fits_best(kind: str) -> None:
    matrix = matrix_of(kind, 120, 150)
    found = measured(matrix)
    alpha, lowest, count, distance = brute_force_tail(scipy.linalg.svdvals(matrix) ** 2)
    assert found.tail_exponent == pytest.approx(alpha, rel=1e-6)
    assert found.tail_from == pytest.approx(math.sqrt(lowest))
    assert found.tail_to == found.spectral_norm
    assert found.tail_values == count
    assert found.tail_distance == pytest.approx(distance, rel=1e-6)
    assert found.tail_exponent_error == pytest.approx((alpha - 1) / math.sqrt(count), rel=1e-6)


def test_a_tail_holds_all_eigenvalues_equal_to_its_least() -> None:
    values = np.floor(10 * np.arange(1, 61.0) ** -0.3)  # 11 times 4, 34 times 3
    found = measured(np.diag(values))
    alpha, lowest, count, distance = brute_force_tail(values**2)
    assert (found.tail_values, found.tail_from) == (count, math.sqrt(lowest))
    assert (found.tail_exponent, found.tail_distance) == pytest.approx((alpha, distance))


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0, 6.0])
def test_a_known_exponent_is_found_and_the_bulk_left_out(alpha: float) -> None:
    """400 eigenvalues of a power law from 4 up, over a bulk of 200 spread evenly below 4."""
    tail = scipy.stats.pareto(alpha - 1, scale=4).ppf((np.arange(400) + 0.5) / 400)
    bulk = np.linspace(0.01, 4, 200, endpoint=False)
    found = measured(with_singular_values(np.sqrt(np.concatenate([tail, bulk])), 600, 620))
    assert found.tail_exponent == pytest.approx(alpha, rel=0.03)
    assert found.tail_from == pytest.approx(2, rel=0.05)
    assert found.tail_to == found.spectral_norm
    assert found.tail_values is not None
    assert 360 <= found.tail_values <= 420
    assert found.tail_distance is not None
    assert found.tail_distance < 0.02


def test_a_randomised_spectrum_finds_the_exponent_too(randomised: None) -> None:
    values = np.sqrt(scipy.stats.pareto(1.5).ppf((np.arange(500) + 0.5) / 500))
    found = measured(with_singular_values(values, 500, 520), 100)
    assert found.tail_exponent == pytest.approx(2.5, rel=0.05)
    assert found.tail_values is not None
    assert found.tail_values <= found.known == 60


def test_fewer_than_ten_eigenvalues_are_no_tail() -> None:
    values = np.arange(10, 0, -1.0)
    assert measured(with_singular_values(values, 30, 20)).tail_values == 10
    assert measured(with_singular_values(values[:9], 30, 20)).tail_values is None


# Blocks and memory


@pytest.mark.parametrize("way", ["whole", "summed", "randomised"])
@pytest.mark.parametrize("shape", [(230, 170), (170, 230)])
def test_the_way_the_rows_are_cut_changes_nothing(
    shape: tuple[int, int], way: str, request: pytest.FixtureRequest
) -> None:
    if way != "whole":
        request.getfixturevalue(way)
    matrix = matrix_of("Student", *shape)
    once = measured(matrix)
    for heights in [(1,), (7,), (64, 1, 0, 30)]:
        assert measured(matrix, *heights) == once


@pytest.mark.parametrize("shape", [(60_000, 256), (256, 60_000)])
def test_memory_does_not_grow_with_the_long_side(shape: tuple[int, int]) -> None:
    """123 MB as float64; a panel is 34 MB, a block at most 4 MB."""
    height = 8 if shape[0] < shape[1] else 2048

    def rows() -> Iterable[Array]:
        rng = np.random.default_rng(4)
        for top in range(0, shape[0], height):
            yield rng.standard_normal((min(height, shape[0] - top), shape[1]), dtype=np.float32)

    tracemalloc.start()
    try:
        found = spectrum_of(rows, shape)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert peak < 50 * 2**20
    # The largest singular value of a normal matrix: sqrt(m) + sqrt(n), a little less.
    assert found.spectral_norm == pytest.approx(math.sqrt(60_000) + math.sqrt(256), rel=0.01)


# What is no matrix of ordinary numbers


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_with_a_non_finite_element_has_no_spectrum(wrong: float, dtype: type) -> None:
    matrix = np.ones((20, 30), dtype=dtype)
    matrix[13, 29] = wrong
    assert spectrum_of(blocks_of(matrix, 6), matrix.shape) is None


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_a_matrix_without_elements_has_no_spectrum(shape: tuple[int, int]) -> None:
    assert spectrum_of(blocks_of(np.ones(shape)), shape) is None


def test_a_matrix_of_zeros_has_no_ranks() -> None:
    found = measured(np.full((4, 30), -0.0))
    assert found == Spectrum(
        method="exact", singular_values=(0, 0, 0, 0), known=4, resolution=0, spectral_norm=0, stable_rank=None
    )
    assert math.copysign(1, found.spectral_norm) == 1


@pytest.mark.parametrize("way", ["whole", "summed", "randomised"])
@pytest.mark.parametrize("exponent", [-1000, -60, 60, 1000])
def test_a_power_of_two_scales_the_values_and_nothing_else(
    exponent: int, way: str, request: pytest.FixtureRequest
) -> None:
    if way != "whole":
        request.getfixturevalue(way)
    matrix = matrix_of("Student", 150, 130)
    plain, scaled = measured(matrix, 40), measured(np.ldexp(matrix, exponent), 40)
    values = {"singular_values", "spectral_norm", "resolution", "tail_from", "tail_to"}
    assert scaled.model_dump(exclude=values) == plain.model_dump(exclude=values)
    assert scaled.singular_values == tuple(math.ldexp(value, exponent) for value in plain.singular_values)
    assert plain.tail_from is not None
    assert scaled.tail_from == math.ldexp(plain.tail_from, exponent)


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e300])
def test_the_extremes_of_float64_neither_overflow_nor_vanish(size: float) -> None:
    found = measured(np.full((4, 9), size))
    assert found.singular_values == pytest.approx([6 * size, 0, 0, 0], rel=1e-12, abs=0)
    assert found.stable_rank == pytest.approx(1)


def test_a_norm_beyond_float64_is_no_spectrum() -> None:
    huge = sys.float_info.max
    assert measured(np.diag([huge, 1.0])).spectral_norm == pytest.approx(huge, rel=1e-12)
    assert spectrum_of(blocks_of(np.full((2, 2), huge)), (2, 2)) is None


@pytest.mark.parametrize("shape", [(20, 31), (21, 30), (19, 30)])
def test_blocks_of_another_shape_are_a_mistake(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="of shape"):
        spectrum_of(blocks_of(np.ones((20, 30)), 6), shape)
