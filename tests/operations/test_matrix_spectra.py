"""Singular values changed, against torch.linalg in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import apply_whole

from planner.operations.base import Operation
from planner.operations.rank_reduce import RankReduce
from planner.operations.spectral_clamp import SpectralClamp
from planner.operations.spectral_scale import SpectralScale

Array = np.ndarray[Any, Any]


def changed_by_torch(values: Array, change: Any) -> Array:
    left, found, right = torch.linalg.svd(torch.from_numpy(values).double(), full_matrices=False)
    return (left @ torch.diag(change(found)) @ right).numpy()


def close(after: Array, expected: Array, values: Array) -> bool:
    return bool(np.abs(after - expected).max() <= 2e-7 * max(np.abs(expected).max(), np.abs(values).max()))


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 30), columns=st.integers(1, 30), data=st.data())
@settings(deadline=None, max_examples=60)
def test_each_is_what_torch_makes_of_the_singular_values(seed: int, rows: int, columns: int, data: Any) -> None:
    values = np.random.default_rng(seed).normal(0, 0.1, (rows, columns)).astype(np.float32)
    count = min(rows, columns)
    first = data.draw(st.integers(1, count))
    last = data.draw(st.none() | st.integers(first, count + 3))
    factor = data.draw(st.floats(-3, 3))

    def scaled(found: torch.Tensor) -> torch.Tensor:
        found = found.clone()
        found[first - 1 : last] *= factor
        return found

    after = apply_whole(SpectralScale(first=first, last=last, factor=factor), values)
    assert close(after, changed_by_torch(values, scaled), values)
    maximum = data.draw(st.floats(0.01, 1))
    after = apply_whole(SpectralClamp(maximum=maximum), values)
    assert close(after, changed_by_torch(values, lambda found: found.clamp(max=maximum)), values)
    assert np.linalg.norm(after.astype(float), 2) <= max(maximum, 1e-30) * (1 + 1e-5)
    rank = data.draw(st.integers(1, count + 2))
    after = apply_whole(RankReduce(rank=rank), values)
    kept = changed_by_torch(values, lambda found: found * (torch.arange(len(found)) < rank))
    assert close(after, kept, values)
    assert np.linalg.matrix_rank(after.astype(float), tol=1e-5) <= rank


@pytest.mark.parametrize(
    "operation", [SpectralScale(factor=1), SpectralClamp(maximum=100), RankReduce(rank=5), RankReduce(rank=50)]
)
@pytest.mark.parametrize("working", [np.float32, np.float64])
def test_where_no_singular_value_changes_no_bit_does(operation: Operation, working: Any) -> None:
    values = np.random.default_rng(0).normal(size=(9, 5)).astype(working)
    assert np.array_equal(apply_whole(operation, values), values)


def test_the_nearest_matrix_of_a_rank_is_no_farther_than_the_values_dropped() -> None:
    values = np.random.default_rng(1).normal(size=(20, 12))
    found = np.linalg.svd(values, compute_uv=False)
    for rank in (1, 5, 11):
        after = apply_whole(RankReduce(rank=rank), values)
        assert np.linalg.norm(values - after) == pytest.approx(np.sqrt(np.sum(found[rank:] ** 2)))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_matrix_without_elements_stays_empty(shape: tuple[int, int]) -> None:
    assert apply_whole(RankReduce(rank=1), np.zeros(shape, dtype=np.float32)).shape == shape
