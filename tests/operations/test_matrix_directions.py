"""Directions removed and turned, against torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import apply_whole

from planner.operations.directions import orthonormal
from planner.operations.project_out import ProjectOut
from planner.operations.rotate import Rotate

FILE = {"file": "f.safetensors", "array": "d"}
SEEDS = st.integers(0, 2**32)
AXES = pytest.mark.parametrize("axis", ["rows", "columns"])
Array = np.ndarray[Any, Any]


def oriented(axis: str, in_rows: Array) -> Array:
    """A matrix whose stream vectors are its rows, as `axis` would store it."""
    return in_rows.T if axis == "rows" else in_rows


def made(seed: int, count: int = 1) -> tuple[Array, Array]:
    """Vectors of the stream as rows [m, n], float32, and directions [count, n] of any length."""
    rng = np.random.default_rng(seed)
    m, n = rng.integers(1, 30), rng.integers(max(count, 2), 30)
    lengths = 10.0 ** rng.integers(-6, 6, (count, 1))
    return rng.normal(0, 0.1, (m, n)).astype(np.float32), rng.normal(size=(count, n)) * lengths


@AXES
@given(seed=SEEDS, count=st.integers(1, 4), strength=st.sampled_from([1.0, 0.5, 2.0, -1.0, 1.3]))
@settings(deadline=None, max_examples=40)
def test_what_is_left_is_the_projection_that_torch_computes(axis: str, seed: int, count: int, strength: float) -> None:
    vectors, directions = made(seed, count)
    operation = ProjectOut(direction=FILE, strength=strength, axis=axis)
    after = oriented(axis, apply_whole(operation, oriented(axis, vectors), {"direction": directions}))
    wide = torch.from_numpy(vectors).double()
    q, _ = torch.linalg.qr(torch.from_numpy(directions).double().T)
    expected = wide - strength * (wide @ q) @ q.T
    assert np.abs(after - expected.numpy()).max() <= 1e-7 * np.abs(vectors).max() * (1 + abs(strength))
    if strength == 1:
        assert np.abs(after @ q.numpy()).max() <= 1e-6 * np.abs(vectors).max() * np.sqrt(directions.shape[1])


@AXES
@given(seed=SEEDS, strength=st.sampled_from([1.0, 0.5, 1.5, -0.5]))
@settings(deadline=None, max_examples=40)
def test_keep_norm_is_the_published_recipe_on_vectors_of_the_stream(axis: str, seed: int, strength: float) -> None:
    vectors, directions = made(seed)
    operation = ProjectOut(direction=FILE, strength=strength, axis=axis, keep_norm=True)
    after = oriented(axis, apply_whole(operation, oriented(axis, vectors), {"direction": directions}))
    wide, unit = (
        torch.from_numpy(vectors).double(),
        torch.nn.functional.normalize(torch.from_numpy(directions)[0], dim=0),
    )
    pointing = torch.nn.functional.normalize(wide, dim=1)
    moved = pointing - strength * torch.outer(pointing @ unit, unit)
    expected = wide.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(moved, dim=1)
    assert np.allclose(after, expected.numpy(), rtol=1e-6, atol=1e-8)
    assert np.allclose(np.linalg.norm(after.astype(float), axis=1), np.linalg.norm(vectors.astype(float), axis=1))
    if strength == 1:
        assert np.abs(after @ unit.numpy()).max() < 1e-6


@AXES
def test_a_vector_along_the_direction_vanishes_and_is_not_stretched_out_of_rounding(axis: str) -> None:
    direction = np.random.default_rng(0).normal(size=50)
    vectors = np.stack([direction, -3 * direction, np.zeros(50), np.eye(50)[0]]).astype(np.float32)
    operation = ProjectOut(direction=FILE, strength=1, axis=axis, keep_norm=True)
    after = oriented(axis, apply_whole(operation, oriented(axis, vectors), {"direction": [direction]}))
    assert np.abs(after[:3]).max() < 1e-6
    assert np.linalg.norm(after[3]) == pytest.approx(1, abs=1e-6)


def test_the_written_stream_no_longer_moves_along_the_direction() -> None:
    """A torch Linear is a writer: rows run over the stream; so does a Conv1D stored the other way, over columns."""
    rng = np.random.default_rng(1)
    weight, direction, x = rng.normal(size=(12, 7)), rng.normal(size=12), torch.from_numpy(rng.normal(size=(20, 7)))
    linear = apply_whole(ProjectOut(direction=FILE, strength=1, axis="rows"), weight, {"direction": direction})
    conv = apply_whole(ProjectOut(direction=FILE, strength=1, axis="columns"), weight.T, {"direction": direction})
    written = torch.nn.functional.linear(x, torch.from_numpy(linear)).numpy()
    assert np.abs(written @ direction).max() < 1e-12
    assert np.allclose(x.numpy() @ conv, written)


def test_a_reader_no_longer_sees_the_direction() -> None:
    rng = np.random.default_rng(2)
    weight, direction, x = rng.normal(size=(5, 12)), rng.normal(size=12), rng.normal(size=(20, 12))
    reader = apply_whole(ProjectOut(direction=FILE, strength=1, axis="columns"), weight, {"direction": direction})
    assert np.allclose((x + 7 * direction) @ reader.T, x @ reader.T)


@AXES
@given(seed=SEEDS, angle=st.floats(-1000, 1000) | st.sampled_from([0.0, 90.0, -90.0, 180.0, 270.0, 360.0, -0.0]))
@settings(deadline=None, max_examples=40)
def test_a_rotation_is_the_exponential_of_its_plane_and_keeps_norms(axis: str, seed: int, angle: float) -> None:
    vectors, (first, second) = made(seed, 2)
    operation = Rotate(first=FILE, second=FILE, angle=angle, axis=axis)
    after = oriented(axis, apply_whole(operation, oriented(axis, vectors), {"first": first, "second": second}))
    p = first / np.linalg.norm(first)
    q = second / np.linalg.norm(second)
    q = q - (q @ p) * p
    q /= np.linalg.norm(q)
    rotation = scipy.linalg.expm(np.radians(np.fmod(angle, 360)) * (np.outer(q, p) - np.outer(p, q)))
    assert np.allclose(after, vectors.astype(float) @ rotation.T, rtol=1e-6, atol=1e-7)
    wide = np.linalg.norm(vectors.astype(float), axis=1)
    assert np.allclose(np.linalg.norm(after.astype(float), axis=1), wide, rtol=1e-6)


def test_a_writer_and_a_reader_turned_alike_answer_as_before() -> None:
    rng = np.random.default_rng(3)
    writer, reader, x = rng.normal(size=(9, 4)), rng.normal(size=(5, 9)), rng.normal(size=(4, 6))
    arrays = {"first": rng.normal(size=9), "second": rng.normal(size=9)}
    turned = apply_whole(Rotate(first=FILE, second=FILE, angle=50, axis="rows"), writer, arrays)
    follows = apply_whole(Rotate(first=FILE, second=FILE, angle=50, axis="columns"), reader, arrays)
    assert not np.allclose(reader @ turned @ x, reader @ writer @ x)
    assert np.allclose(follows @ turned @ x, reader @ writer @ x)


def test_a_turn_of_the_first_direction_goes_towards_the_second() -> None:
    operation = Rotate(first=FILE, second=FILE, angle=30, axis="columns")
    after = apply_whole(operation, np.array([[2.0, 0, 0]]), {"first": [5, 0, 0], "second": [1, 1, 0]})
    assert np.allclose(after, [[2 * np.cos(np.pi / 6), 1, 0]])


def test_nan_spreads_over_its_vector_and_no_further() -> None:
    values = np.ones((3, 4))
    values[1, 2] = np.nan
    rows = apply_whole(ProjectOut(direction=FILE, strength=1, axis="rows"), values, {"direction": [1, 1, 0]})
    columns = apply_whole(ProjectOut(direction=FILE, strength=1, axis="columns"), values, {"direction": [1, 1, 1, 0]})
    assert np.isnan(rows).any(axis=0).tolist() == [False, False, True, False]
    assert np.isnan(columns).any(axis=1).tolist() == [False, True, False]


@given(seed=SEEDS)
@settings(deadline=None, max_examples=50)
def test_directions_become_orthonormal_even_where_they_nearly_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 40))
    base = rng.normal(size=n)
    given_ = np.stack([base, base + 1e-4 * rng.normal(size=n), rng.normal(size=n) * 1e200])
    found = orthonormal(given_)
    assert np.allclose(found @ found.T, np.eye(3), atol=1e-13)
    assert np.allclose(found[0], base / np.linalg.norm(base), rtol=1e-14)
    for directions in (given_[[0, 0]], np.zeros((1, n)), np.full((1, n), np.inf), np.eye(n)[:2] * [[1], [np.nan]]):
        with pytest.raises(ValueError):
            orthonormal(directions)
