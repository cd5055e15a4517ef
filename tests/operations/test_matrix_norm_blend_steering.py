"""Norms set, tensors blended and steering baked in, against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import apply_whole

from planner.operations.bake_steering import BakeSteering
from planner.operations.base import ANYWHERE, Place
from planner.operations.blend import Blend
from planner.operations.normalize import Normalize

FILE = {"file": "f.safetensors", "array": "d"}
SEEDS = st.integers(0, 2**32)
Array = np.ndarray[Any, Any]


@given(seed=SEEDS, norm=st.floats(1e-3, 1e3), exponent=st.integers(-18, 17))
@settings(deadline=None, max_examples=50)
def test_rows_and_the_whole_get_the_norm_that_torch_gives(seed: int, norm: float, exponent: int) -> None:
    values = (np.random.default_rng(seed).normal(size=(6, 11)) * 10.0**exponent).astype(np.float32)
    values[2] = 0
    wide = torch.from_numpy(values).double()
    rows = apply_whole(Normalize(norm=norm, per="rows"), values)
    assert np.allclose(rows, (torch.nn.functional.normalize(wide, dim=1, eps=1e-300) * norm).numpy(), rtol=1e-6, atol=0)
    assert not rows[2].any()
    whole = apply_whole(Normalize(norm=norm, per="whole"), values)
    assert np.allclose(whole, (wide * (norm / torch.linalg.matrix_norm(wide))).numpy(), rtol=1e-6, atol=0)


def test_what_has_no_norm_stays_as_it_is() -> None:
    values = np.array([[np.nan, 1], [np.inf, 1], [-0.0, 0], [3, 4]])
    rows = apply_whole(Normalize(norm=1, per="rows"), values)
    assert np.array_equal(rows[:3], values[:3], equal_nan=True)
    assert np.signbit(rows[2, 0])
    assert np.allclose(rows[3], [0.6, 0.8], rtol=1e-15)
    assert np.array_equal(apply_whole(Normalize(norm=1, per="whole"), values), values, equal_nan=True)
    assert not apply_whole(Normalize(norm=1, per="whole"), np.zeros((2, 2))).any()


@given(seed=SEEDS, weight=st.floats(-3, 3))
@settings(deadline=None, max_examples=50)
def test_a_blend_is_torch_s_lerp(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    values, other = (rng.normal(size=(7, 5)).astype(np.float32) for _ in range(2))
    after = apply_whole(Blend(checkpoint="x", weight=weight), values, other=other, cuts=[2, 3])
    expected = torch.from_numpy(values).double() + weight * torch.from_numpy(other - values.astype(float))
    assert np.array_equal(after, expected.float().numpy())
    lerp = torch.lerp(torch.from_numpy(values).double(), torch.from_numpy(other).double(), weight)
    assert np.allclose(after, lerp.numpy(), rtol=1e-6, atol=1e-6)


def test_a_weight_of_one_takes_the_other_tensor_to_the_bit() -> None:
    values, other = np.array([[1e30, 1]], dtype=np.float32), np.array([[1e-30, np.inf]], dtype=np.float32)
    assert np.array_equal(apply_whole(Blend(checkpoint="x", weight=1), values, other=other), other)


def test_rows_of_another_length_do_not_blend() -> None:
    place = Place(shape=(2, 3), other=lambda first, count: np.ones((count, 4)))
    with pytest.raises(ValueError, match="4 elements in the other"):
        Blend(checkpoint="x", weight=0.5).apply(np.ones((2, 3)), place)
    with pytest.raises(ValueError, match="not there"):
        Blend(checkpoint="x", weight=0.5).apply(np.ones((2, 3)), ANYWHERE)


def steered(linear: torch.nn.Linear, vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What the module puts out while a hook adds the vector."""
    handle = linear.register_forward_hook(lambda module, arguments, output: output + vector)
    with torch.no_grad():
        found: torch.Tensor = linear(x)
    handle.remove()
    return found


@given(seed=SEEDS, inputs=st.integers(2, 384), outputs=st.integers(1, 60), count=st.sampled_from([1, 2, 7, 64]))
@settings(deadline=None, max_examples=50)
def test_a_bias_made_anew_does_what_a_forward_hook_does_to_the_bit(
    seed: int, inputs: int, outputs: int, count: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear, vector = torch.nn.Linear(inputs, outputs, bias=False), torch.randn(outputs, generator=generator)
    linear.weight.data = torch.randn(outputs, inputs, generator=generator)
    x = torch.randn(count, inputs, generator=generator)
    zeros = np.zeros((1, outputs), dtype=np.float32)
    bias = apply_whole(BakeSteering(vector=FILE, strength=0.5), zeros, {"vector": vector.numpy()})
    with torch.no_grad():
        baked = torch.nn.functional.linear(x, linear.weight, torch.from_numpy(bias[0]))
    assert torch.equal(baked, steered(linear, 0.5 * vector, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_that_was_there_is_added_to(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, vector, x = torch.nn.Linear(30, 20, dtype=dtype), torch.randn(20), torch.randn(50, 30, dtype=dtype)
    before = linear.bias.detach().numpy()[None, :]
    bias = apply_whole(BakeSteering(vector=FILE, strength=2), before, {"vector": vector.numpy()})
    expected = linear.bias.detach().double() + 2 * vector.double()
    assert np.array_equal(bias[0], expected.to(dtype).numpy())
    with torch.no_grad():
        baked = torch.nn.functional.linear(x, linear.weight, torch.from_numpy(bias[0]))
    spacing = float(torch.finfo(dtype).eps)
    assert torch.allclose(baked, steered(linear, 2 * vector.to(dtype), x), rtol=0, atol=16 * spacing)


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_without_a_bias_the_weight_adds_the_vector_for_the_given_input(axis: str) -> None:
    rng = np.random.default_rng(4)
    weight, vector, mean = rng.normal(size=(6, 9)), rng.normal(size=6), rng.normal(size=9)
    operation = BakeSteering(vector=FILE, strength=1.5, without_bias="rank_one", input=FILE, axis=axis)
    stored = weight if axis == "rows" else weight.T
    after = apply_whole(operation, stored, {"vector": vector, "input": mean}, cuts=[2])
    after = after if axis == "rows" else after.T
    assert np.allclose(after @ mean, weight @ mean + 1.5 * vector)
    aside = rng.normal(size=9)
    aside -= (aside @ mean) / (mean @ mean) * mean
    assert np.allclose(after @ aside, weight @ aside)
