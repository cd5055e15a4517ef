"""One result on every machine: other processors are simulated by what numpy, BLAS, the C library and numba let one say.

Each simulated machine is a process of its own (this file, run as a program) that does every operation and prints a
digest of each result. It also prints digests of what is known to differ: a control that the simulation is one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dtypes import FLOATS, FloatDtype
from planner.operations import (
    EVERYTHING,
    OPERATIONS,
    Columns,
    Operation,
    Rows,
    Selection,
    Step,
    beyond_quantile_of_values,
    fold,
)
from planner.operations.gaussian import logarithm, standard_normal
from planner.operations.singular import singular_vectors
from planner.operations.sums import add_product, dots, squares

Array = np.ndarray[Any, Any]
SHAPES = ((1, 1), (3, 257), (129, 65), (66, 131), (1, 1003))
LARGE = (1031, 1021)
"""More than one block, which is cut at the same rows whatever comes in."""
FILE = {"file": "f.safetensors", "array": "d"}
DIRECTIONS = ("rows", "columns")
ACROSS_BLOCKS = ("normalize", "project_out", "rotate", "noise", "low_rank_add")
"""Operations that could notice where a block begins."""
SPECTRAL = ("spectral_scale", "spectral_clamp", "rank_reduce")


def ways(kind: str, rows: int, columns: int, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], Any]]:
    """Parameters of an operation of that kind, for a matrix of that shape, with the arrays that they name."""
    long = {"rows": rows, "columns": columns}
    match kind:
        case "scale":
            yield {"factor": 1.0173}, {}
            for axis in DIRECTIONS:
                yield {"factor": {**FILE, "axis": axis}}, {"factor": rng.normal(1, 0.1, long[axis])}
        case "shift":
            yield {"offset": 0.0123}, {}
        case "clamp":
            yield {"minimum": -0.0731, "maximum": 0.0617}, {}
        case "zero":
            yield {}, {}
        case "soft_threshold":
            yield {"threshold": 0.0171}, {}
        case "noise":
            yield {"std": 0.0313, "seed": 11}, {}
        case "reduce" | "boost":
            yield {"alpha": 0.0717}, {}
        case "head_scale":
            yield {"heads": "0", "factor": 0.731}, {}
        case "neuron_scale":
            yield {"neurons": "0", "factor": 0.731}, {}
        case "channel_scale":
            yield {"channels": "0", "factor": 0.731}, {}
        case "normalize":
            yield {"norm": 1.7, "per": "rows"}, {}
            yield {"norm": 1.7, "per": "whole"}, {}
        case "project_out":
            for axis in DIRECTIONS:
                count = min(3, long[axis])
                for keep in (False, True):
                    yield (
                        {"direction": FILE, "strength": 0.9, "axis": axis, "keep_norm": keep},
                        {"direction": rng.normal(size=(count, long[axis]))},
                    )
        case "rotate":  # by an angle of which glibc has two cosines: with fused multiply-add, and without
            for axis in DIRECTIONS:
                if long[axis] > 1:
                    first, second = rng.normal(size=(2, long[axis]))
                    yield (
                        {"first": FILE, "second": FILE, "angle": 136.3, "axis": axis},
                        {"first": first, "second": second},
                    )
        case "rank_one":
            yield {"u": FILE, "v": FILE, "strength": 0.3}, {"u": rng.normal(size=rows), "v": rng.normal(size=columns)}
        case "low_rank_add":
            for rounding in ("once", "delta_first"):
                arrays = {"a": rng.normal(size=(5, columns)), "b": rng.normal(size=(rows, 5))}
                yield {"a": FILE, "b": FILE, "weight": 0.7, "rounding": rounding}, arrays
        case "bake_steering":
            vector, given = rng.normal(size=rows), rng.normal(size=columns)
            parameters = {"vector": FILE, "strength": 0.3, "without_bias": "rank_one", "input": FILE, "axis": "rows"}
            yield parameters, {"vector": vector, "input": given}
        case "spectral_scale":
            yield {"first": 1, "last": max(1, min(rows, columns) // 2), "factor": 1.37}, {}
        case "spectral_clamp":
            yield {"maximum": 0.517}, {}
        case "rank_reduce":
            yield {"rank": max(1, min(rows, columns) // 3)}, {}
        case "blend":
            yield {"checkpoint": "x", "weight": 0.37}, {"other": rng.normal(0, 0.1, (rows, columns))}
        case _:
            raise AssertionError(f"no example of {kind}: it may differ between machines")


def stored_matrix(shape: tuple[int, int], dtype: FloatDtype, rng: np.random.Generator, *, finite: bool) -> Array:
    """Patterns; where not `finite`, with what else is stored now and then."""
    values = rng.normal(0, 0.1, shape).astype(dtype.working)
    values *= rng.choice([1e-3, 1.0, 1.0, 5.0], (shape[0], 1)).astype(dtype.working)
    if not finite and values.size > 100:
        values.reshape(-1)[[3, 17, 29, 31, 41, 60]] = [np.nan, np.inf, -np.inf, -0.0, 0.0, np.finfo(dtype.working).tiny]
    return dtype.encode(values)


def elsewhere(patterns: Array, shift: int) -> Array:
    """The same patterns, flat, at another address."""
    raw = np.empty(patterns.size + shift, patterns.dtype)[shift:]
    raw[:] = patterns.reshape(-1)
    return raw


def digest_of(step: Step, dtype: FloatDtype, patterns: Array, shift: int) -> str:
    """Of the new patterns, where the old ones lie and are cut as `shift` says."""

    def blocks() -> Iterator[Array]:
        cuts = sorted({min(patterns.size, cut) for cut in (shift * 7, shift * 1009, shift * 40_009)})
        for piece in np.split(patterns.reshape(-1), cuts):
            yield elsewhere(piece, shift)

    found = hashlib.sha256()
    for piece in fold([step], dtype, patterns.shape, tensor="w").rewrite(blocks):
        found.update(np.ascontiguousarray(piece).tobytes())
    return found.hexdigest()


def selections(shape: tuple[int, int], kind: str, values: Array) -> Iterator[tuple[str, Selection]]:
    """All elements, and some."""
    yield "all", EVERYTHING
    if shape != LARGE:
        yield "rows", Rows(np.arange(0, shape[0], 3, dtype=np.int64))
        if kind not in SPECTRAL:
            yield "columns", Columns(np.arange(0, shape[1], 2, dtype=np.int64))
            yield "large", beyond_quantile_of_values(values, 0.8, of="magnitude", side="above").ranges


def everything(shift: int) -> dict[str, str]:
    """Digests of all results, by what was done."""
    found = {}
    for shape, dtype in [*itertools.product(SHAPES, FLOATS.values()), (LARGE, FLOATS["F32"])]:
        for kind, operation in OPERATIONS.items():
            if shape == LARGE and kind not in ACROSS_BLOCKS:
                continue
            rng = np.random.default_rng([*shape, *kind.encode()])
            patterns = stored_matrix(shape, dtype, rng, finite=kind in SPECTRAL)
            chosen = list(selections(shape, kind, dtype.decode(patterns)))
            for way, (parameters, arrays) in enumerate(ways(kind, *shape, rng)):
                other = arrays.pop("other", None)
                rows = None if other is None else _rows_of(other.astype(dtype.working))
                for name, selection in chosen:
                    step = Step(operation(**parameters), selection, arrays, rows)
                    found[f"{kind} {way} {name} {dtype.name} {shape}"] = digest_of(step, dtype, patterns, shift)
    return found


def _rows_of(other: Array) -> Any:
    return lambda first, count: other[first : first + count]


def control() -> dict[str, str]:
    """Digests of what is not the same on every machine."""
    matrix = np.random.default_rng(0).normal(size=(130, 190))
    found = {
        "a matrix product": matrix @ matrix.T,
        "singular values": np.linalg.svd(matrix)[1],
        "exp": np.exp(matrix),
        "log": np.log(np.abs(matrix)),
        "cos": np.array([math.cos(x) for x in 10 * matrix.reshape(-1)]),
    }
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in found.items()}


def machines() -> dict[str, dict[str, str]]:
    """Environments that stand for other machines, as far as this one can play them."""
    inside = np._core._multiarray_umath  # type: ignore[attr-defined] # the documented list is on paper only
    features: dict[str, bool] = inside.__cpu_features__
    present = [name for name in inside.__cpu_dispatch__ if features[name]]
    found = {
        "this one": {},
        "an old one": {
            "OPENBLAS_CORETYPE": "Nehalem",
            "OPENBLAS_NUM_THREADS": "1",
            "NPY_DISABLE_CPU_FEATURES": " ".join(present),
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-AVX,-FMA,-FMA4",
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "",
            "NUMBA_NUM_THREADS": "1",
        },
    }
    if features.get("AVX2") and features.get("FMA3"):
        found["one with fused multiply-add and 256 bits"] = {
            "OPENBLAS_CORETYPE": "Haswell",
            "NPY_DISABLE_CPU_FEATURES": " ".join(n for n in present if n == "X86_V4" or n.startswith("AVX512")),
            "NUMBA_CPU_NAME": "haswell",
            "NUMBA_CPU_FEATURES": "",
        }
    return found


def run_as(number: int, environment: dict[str, str], cache: Path) -> Any:
    """What this file prints on a machine."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(number)],
        env=os.environ | environment | {"NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, Any]]:
    """By machine."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        played = {
            name: pool.submit(run_as, number, environment, Path(folder) / str(number))
            for number, (name, environment) in enumerate(machines().items())
        }
        yield {name: result.result() for name, result in played.items()}


def test_every_operation_gives_the_same_bits_on_every_machine(results: dict[str, Any]) -> None:
    first, *others = (result["digests"] for result in results.values())
    assert {name.split()[0] for name in first} == set(OPERATIONS)
    for other in others:
        assert first.keys() == other.keys()
        assert [name for name in first if first[name] != other[name]] == []


def test_the_simulated_machines_do_differ(results: dict[str, Any]) -> None:
    controls = [result["control"] for result in results.values()]
    differing = {name for name in controls[0] if len({found[name] for found in controls}) > 1}
    if not differing:
        pytest.skip("numpy and BLAS heed none of the environment variables here: no other machine was simulated")
    assert "a matrix product" in differing or "exp" in differing


def test_a_new_nan_is_the_same_everywhere() -> None:
    for dtype in FLOATS.values():
        stored = dtype.encode(np.array([[np.inf, np.nan, -np.nan, 1]], dtype=dtype.working))
        other = Step(OPERATIONS["blend"](checkpoint="x", weight=0.5), other=_rows_of(-dtype.decode(stored)))
        (new,) = fold([other], dtype, stored.shape).rewrite(lambda stored=stored: iter([stored]))
        positive = dtype.encode(np.array(np.nan, dtype=dtype.working))
        assert new.tolist() == [positive, *stored[0, 1:3].tolist(), dtype.encode(np.zeros(1, dtype.working))[0]]


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 60),
    rank=st.integers(0, 40),
    decades=st.sampled_from([0, 3, 9, 16, 40]),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=80)
def test_singular_values_are_those_of_lapack(rows: int, columns: int, rank: int, decades: int, seed: int) -> None:
    rows, columns = min(rows, columns), max(rows, columns)
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (rows, columns))
    wanted = np.zeros(rows)
    wanted[:rank] = 10.0 ** -np.sort(rng.uniform(0, decades, rows))[:rank]
    wanted[: rng.integers(0, rows + 1)] = 1.0  # some are equal
    _require_factors((left * wanted) @ right[:rows])


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 9)),
        np.eye(7),
        np.ones((5, 5)),
        np.diag([0.5, -1, 0, 1e-200]),
        np.random.default_rng(0).normal(size=(256, 300)) / 8,
        np.random.default_rng(1).normal(size=(130, 130)) / 8,
    ],
    ids=["zero", "identity", "ones", "diagonal", "wide", "square"],
)
def test_singular_values_of_special_matrices(matrix: Array) -> None:
    _require_factors(matrix)


def _require_factors(matrix: Array) -> None:
    expected = np.linalg.svd(matrix, compute_uv=False)
    left, values, right = singular_vectors(matrix.copy())
    scale = max(expected[0], 1e-300)
    assert np.abs(values - expected).max() <= 1e-13 * scale
    assert np.abs((left.T * values) @ right - matrix).max() <= 1e-13 * scale
    assert np.abs(left @ left.T - np.eye(len(left))).max() <= 1e-13
    good = right[values > 1e-2 * scale]
    assert np.abs(good @ good.T - np.eye(len(good))).max(initial=0) <= 1e-11


@given(st.integers(0, 20), st.integers(0, 9), st.integers(0, 300), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_sums_are_right(rows: int, columns: int, depth: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(rows, depth)), rng.normal(size=(columns, depth))
    exact = np.array([[math.fsum(x * y) for y in right] for x in left]).reshape(rows, columns)
    assert np.allclose(dots(left, right), exact, rtol=0, atol=1e-12)
    assert np.allclose(squares(left), [math.fsum(x * x) for x in left], rtol=1e-13)
    sums = np.ones((rows, columns))
    add_product(left, np.ascontiguousarray(right.T), sums, 0, rows, 0)
    assert np.allclose(sums - 1, exact, rtol=0, atol=1e-12)


def test_noise_is_normal_and_a_stream_does_not_depend_on_what_is_asked_for() -> None:
    stats = pytest.importorskip("scipy.stats")  # slow to import: the simulated machines do without
    numbers = standard_normal(5, 3, 200_000)
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(numbers)) < 0.05
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert np.abs(numbers).max() > 4
    for count in (0, 1, 2, 77, 65_536):
        assert np.array_equal(standard_normal(5, 3, count), numbers[:count])
    assert not np.any(standard_normal(5, 4, 100) == numbers[:100])
    assert not np.any(standard_normal(6, 3, 100) == numbers[:100])


@given(st.floats(2.0**-1000, 2.0**1000))
def test_the_logarithm_is_that_of_the_c_library(value: float) -> None:
    found = float(logarithm(np.array([value]))[0])
    assert abs(found - math.log(value)) <= 4 * math.ulp(math.log(value)) + 1e-300


@given(st.floats(-1e6, 1e6))
def test_a_turn_is_by_the_angle(angle: float) -> None:
    place = {"first": np.array([1.0, 0]), "second": np.array([0, 1.0])}
    operation: Operation = OPERATIONS["rotate"](first=FILE, second=FILE, angle=angle, axis="columns")
    stored = FLOATS["F64"].encode(np.array([[1.0, 0]]))
    (new,) = fold([Step(operation, arrays=place)], FLOATS["F64"], (1, 2)).rewrite(lambda: iter([stored]))
    wanted = [math.cos(math.radians(math.fmod(angle, 360))), math.sin(math.radians(math.fmod(angle, 360)))]
    assert np.allclose(new.view(np.float64), wanted, rtol=0, atol=2e-15)


if __name__ == "__main__":
    json.dump({"digests": everything(int(sys.argv[1])), "control": control()}, sys.stdout)
