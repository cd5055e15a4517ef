"""Low-rank changes, against torch and PEFT to the bit.

PEFT is compared with itself where it is installed, and otherwise with the calls of torch that it makes, in their order.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matrices import apply_whole

from planner.dtypes import FLOATS
from planner.operations.low_rank import low_rank_delta
from planner.operations.low_rank_add import LowRankAdd
from planner.operations.rank_one import RankOne

FILE = {"file": "f.safetensors", "array": "d"}
TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
NAMES = pytest.mark.parametrize("name", TORCH)
STORED = pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
Array = np.ndarray[Any, Any]


def bits(tensor: torch.Tensor) -> Array:
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32).numpy()


def patterns(values: Array, name: str) -> Array:
    found = FLOATS[name].encode(values)
    return found.view(f"<i{found.itemsize}")


def by_planner(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, rounding: str) -> Array:
    """Stored bits after low_rank_add, the rows in three blocks."""
    name = next(name for name, dtype in TORCH.items() if dtype == weight.dtype)
    operation = LowRankAdd(lora="adapter", rounding=rounding)
    arrays = {"a": a.double().numpy(), "b": b.double().numpy(), "scaling": scaling}
    rows = len(weight)
    after = apply_whole(operation, weight.float().numpy(), arrays, cuts=[rows // 3, rows // 3 + 1], dtype=name)
    return patterns(after, name)


def drawn(seed: int, name: str, stored: torch.dtype, *, r: int, rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    """A weight, A and B, the latter as an adapter of dtype `stored` holds them, in float32 as PEFT loads them."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=generator) * 0.05).to(TORCH[name])
    a, b = (torch.randn(*shape, generator=generator) * 0.1 for shape in ((r, columns), (rows, r)))
    return weight, a.to(stored).float(), b.to(stored).float()


SIZES = {"r": st.integers(1, 64), "rows": st.integers(2, 80), "columns": st.integers(2, 120)}


@NAMES
@STORED
@given(seed=st.integers(0, 2**32), turned=st.booleans(), **SIZES)
@settings(deadline=None, max_examples=15)
@example(seed=0, turned=False, r=64, rows=80, columns=120)
@example(seed=0, turned=True, r=33, rows=64, columns=64)
def test_both_roundings_are_the_sums_that_torch_makes(
    name: str, stored: torch.dtype, seed: int, turned: bool, r: int, rows: int, columns: int
) -> None:
    weight, a, b = drawn(seed, name, stored, r=r, rows=rows, columns=columns)
    scaling = 16 / r
    # With fan_in_fan_out PEFT multiplies in the module's orientation and transposes the product.
    delta = (a.T.contiguous() @ b.T.contiguous()).T * scaling if turned else (b @ a) * scaling
    in_place = weight.clone()
    in_place += delta
    assert np.array_equal(by_planner(weight, a, b, scaling, "once"), bits(in_place))
    assert np.array_equal(bits(in_place), bits((weight.float() + delta).to(weight.dtype)))
    first = weight.clone()
    first += delta.to(weight.dtype)
    assert np.array_equal(by_planner(weight, a, b, scaling, "delta_first"), bits(first))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_the_two_roundings_differ(name: str) -> None:
    weight, a, b = drawn(5, name, torch.float32, r=16, rows=60, columns=60)
    once, first = (by_planner(weight, a, b, 1.0, rounding) for rounding in ("once", "delta_first"))
    assert 0.01 < (once != first).mean() < 0.9


@pytest.mark.parametrize("name", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@STORED
def test_peft_itself_merges_to_the_same_bits(name: str, safe: bool, autocast: bool, stored: torch.dtype) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(70, 50, bias=False)
            self.conv = conv1d(40, 60)
            self.table = torch.nn.Embedding(90, 30)

    for r in (1, 8, 40, 64):
        torch.manual_seed(r)
        config = peft.LoraConfig(
            r=r, lora_alpha=5, target_modules=["linear", "conv", "table"], init_lora_weights=False, use_rslora=r == 8
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(Model().to(TORCH[name]), config, autocast_adapter_dtype=autocast)
        expected = {}
        for module in ("linear", "conv", "table"):
            layer = getattr(model.base_model.model, module)
            if module == "table":
                a, b = layer.lora_embedding_A["default"].data, layer.lora_embedding_B["default"].data
            else:
                a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
            for array in (a, b):
                array.copy_((torch.randn(array.shape) * 0.1).to(stored))
            if module != "linear":
                a, b = b.T, a.T
            late = not safe and autocast and module != "table"
            weight = layer.base_layer.weight.data.clone()
            expected[module] = by_planner(weight, a, b, layer.scaling["default"], "once" if late else "delta_first")
        merged = model.merge_and_unload(safe_merge=safe)
        for module, found in expected.items():
            assert np.array_equal(bits(getattr(merged, module).weight.data), found), (module, r)


@given(seed=st.integers(0, 2**32), r=st.integers(1, 384), rows=st.integers(2, 40), columns=st.integers(2, 40))
@settings(deadline=None, max_examples=40)
def test_the_product_is_that_of_torch_in_every_bit_of_float32(seed: int, r: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    b, a = rng.normal(size=(rows, r)).astype(np.float32), rng.normal(size=(r, columns)).astype(np.float32)
    theirs = ((torch.from_numpy(b) @ torch.from_numpy(a)) * 0.3).numpy()
    ours = low_rank_delta(b.astype(np.float64), a.astype(np.float64), 0.3, np.dtype(np.float32))
    assert np.array_equal(ours.view(np.int32), theirs.view(np.int32))


def nearest_float32(exact: Fraction) -> np.float32:
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    # At equal distance the even one, whose last bit is 0.
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.int32)) & 1))


@given(
    p=st.integers(4097, 5700).map(lambda n: n | 1),
    q=st.integers(4097, 5700).map(lambda n: n | 1),
    tail=st.integers(-(2**23), 2**23),
    distance=st.integers(20, 100),
    sign=st.sampled_from([1, -1]),
)
@settings(deadline=None, max_examples=200)
def test_a_step_rounds_once_even_half_way_between_two_numbers(
    p: int, q: int, tail: int, distance: int, sign: int
) -> None:
    """An odd p·q of 25 bits is half-way between two float32; the sum so far says which, however small it is."""
    sum_so_far = np.float32(tail * 2.0**-distance)
    found = low_rank_delta(np.array([[1.0, sign * p]]), np.array([[sum_so_far], [q]]), 1.0, np.dtype(np.float32))
    assert found[0, 0] == nearest_float32(Fraction(float(sum_so_far)) + sign * p * q)


def test_a_product_and_a_sum_are_rounded_together() -> None:
    """(1 + 2⁻¹²)² = 1 + 2⁻¹¹ + 2⁻²⁴, half-way between two float32: a 2⁻⁶⁰ from the sum before decides."""
    one = 1 + 2.0**-12
    for tail, expected in ((2.0**-60, 1 + 2.0**-11 + 2.0**-23), (-(2.0**-60), 1 + 2.0**-11), (0.0, 1 + 2.0**-11)):
        found = low_rank_delta(np.array([[1.0, one]]), np.array([[tail], [one]]), 1.0, np.dtype(np.float32))
        assert found[0, 0] == np.float32(expected)


@given(seed=st.integers(0, 2**32), strength=st.floats(-3, 3))
@settings(deadline=None, max_examples=25)
def test_rank_one_is_torch_s_outer_product(seed: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    weight, u, v = (rng.normal(size=shape).astype(np.float32) for shape in ((7, 9), 7, 9))
    after = apply_whole(RankOne(u=FILE, v=FILE, strength=strength), weight, {"u": u, "v": v}, cuts=[3])
    expected = torch.from_numpy(weight) + torch.outer(torch.from_numpy(u), torch.from_numpy(v)) * strength
    assert np.array_equal(after, expected.numpy())


def test_a_weight_multiplies_the_scaling_and_minus_one_takes_the_adapter_away() -> None:
    weight, a, b = drawn(1, "F32", torch.float32, r=4, rows=6, columns=5)
    arrays = {"a": a.numpy(), "b": b.numpy(), "scaling": 0.25}
    more = apply_whole(LowRankAdd(lora="x", weight=3), weight.numpy(), arrays)
    assert np.array_equal(more, (weight + (b @ a) * 0.75).numpy())
    back = apply_whole(LowRankAdd(lora="x", weight=-3), more, arrays)
    assert np.allclose(back, weight.numpy(), atol=1e-7)


def test_float64_is_computed_in_float64() -> None:
    rng = np.random.default_rng(0)
    weight, a, b = rng.normal(size=(6, 5)), rng.normal(size=(3, 5)), rng.normal(size=(6, 3))
    after = apply_whole(LowRankAdd(a=FILE, b=FILE), weight, {"a": a, "b": b})
    assert np.allclose(after, weight + b @ a, rtol=1e-14, atol=1e-14)
