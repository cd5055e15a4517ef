"""Two checkpoints compared: an operation is named only if it explains the difference bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st

from planner.checkpoint import open_checkpoint
from planner.dtypes import FLOATS
from planner.effects import Difference, TensorDifference, compare
from planner.operations import Clamp, Operation, Scale, Shift, Zero, pointwise

Tensors = dict[str, tuple[str, np.ndarray[Any, Any]]]


def _compared(folder: Path, a: Tensors, b: Tensors, **options: Any) -> Difference:
    first = open_checkpoint(write_checkpoint(folder / "a", a))
    return compare(first, open_checkpoint(write_checkpoint(folder / "b", b, shards=min(2, len(b)))), **options)


def _difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], dtype: str) -> TensorDifference:
    with tempfile.TemporaryDirectory() as folder:
        (found,) = _compared(Path(folder), {"w": (dtype, a)}, {"w": (dtype, b)}).tensors
    return found


def _explained(operation: Operation, dtype: str, *, elements: int = 4000, std: float = 0.05) -> Operation | None:
    a = random_tensor((elements,), dtype=dtype, seed=5, std=std)
    b = pointwise([operation], FLOATS[dtype])(a)
    explanation = _difference(a, b, dtype).explanation
    if explanation is not None:  # never a guess
        assert np.array_equal(pointwise([explanation], FLOATS[dtype])(a), b)
    return explanation


def test_the_same_weights_are_identical_however_they_are_sharded(tmp_path: Path) -> None:
    tensors: Tensors = {name: ("BF16", random_tensor((8, 8), seed=seed)) for seed, name in enumerate("xyz")}
    told: list[int] = []
    found = _compared(tmp_path, tensors, tensors, progress=told.append)
    assert found.identical
    assert found.compared == 3
    assert found.tensors == found.only_in_a == found.only_in_b == ()
    assert sum(told) == 3 * 128


_FEW_DIGITS = st.decimals(min_value="0.01", max_value="9.99", places=2).map(float)


@given(_FEW_DIGITS.filter(lambda factor: abs(factor - 1) > 0.02), st.sampled_from([1, -1]))
@example(factor=7.97, sign=1)  # its products round down more often than up
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_scale_is_found_with_the_factor_that_was_given(dtype: str, factor: float, sign: int) -> None:
    assert _explained(Scale(factor=sign * factor), dtype) == Scale(factor=sign * factor)


@given(st.decimals(min_value="0.01", max_value="0.99", places=2).map(float), st.sampled_from([1, -1]))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_shift_is_explained(dtype: str, offset: float, sign: int) -> None:
    found = _explained(Shift(offset=sign * offset), dtype)
    assert isinstance(found, Shift)
    if dtype == "F32":
        assert found == Shift(offset=sign * offset)


@given(st.floats(-0.15, 0.15), st.floats(-0.15, 0.15))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_clamp_is_explained(dtype: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert _explained(Clamp(minimum=low, maximum=high), dtype) is not None


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_one_sided_clamps_and_zero_are_told_apart(dtype: str) -> None:
    lower, upper = _explained(Clamp(minimum=-0.0625), dtype), _explained(Clamp(maximum=0.03125), dtype)
    assert lower == Clamp(minimum=-0.0625)
    assert upper == Clamp(maximum=0.03125)
    assert _explained(Zero(), dtype) == Zero()


def test_a_change_that_no_operation_makes_is_not_explained() -> None:
    a = random_tensor((1000,), dtype="F32", seed=1)
    noisy = a.view("<f4") + np.random.default_rng(0).normal(0, 1e-3, 1000).astype("<f4")
    found = _difference(a, noisy.view("<u4"), "F32")
    assert found.explanation is None
    change = noisy.astype(float) - a.view("<f4")
    assert found.changed_elements == 1000
    assert found.relative_change == pytest.approx(
        np.linalg.norm(change) / np.linalg.norm(a.view("<f4").astype(float)), rel=1e-9
    )
    assert found.largest_change == pytest.approx(np.abs(change).max(), rel=1e-12)


@pytest.mark.parametrize("place", [0, 500, -1])
def test_a_scale_with_one_bit_off_is_not_explained(place: int) -> None:
    a = random_tensor((1000,))
    b = pointwise([Scale(factor=1.5)], FLOATS["BF16"])(a).copy()
    b[place] ^= 1
    assert _difference(a, b, "BF16").explanation is None


def test_other_shapes_dtypes_and_names_are_told(tmp_path: Path) -> None:
    weights = random_tensor((4, 4))
    found = _compared(
        tmp_path,
        {
            "shape": ("BF16", weights),
            "dtype": ("BF16", weights),
            "ints": ("I64", np.arange(2, dtype="<i8")),
            "same": ("BF16", weights),
            "gone": ("BF16", weights),
        },
        {
            "same": ("BF16", weights),
            "ints": ("I64", np.arange(1, 3, dtype="<i8")),
            "dtype": ("F16", weights),
            "shape": ("BF16", weights.reshape(16)),
            "new": ("BF16", weights),
        },
    )
    assert not found.identical
    assert found.compared == 4
    assert found.only_in_a == ("gone",)
    assert found.only_in_b == ("new",)
    notes = {tensor.name: tensor.note for tensor in found.tensors}
    assert notes == {
        "shape": "BF16 [4, 4] became BF16 [16]",
        "dtype": "BF16 [4, 4] became F16 [4, 4]",
        "ints": "values of I64 are not compared by this version",
    }
    for tensor in found.tensors:
        assert (tensor.explanation, tensor.changed_elements, tensor.relative_change) == (None, None, None)


def test_only_names_that_differ_are_a_difference(tmp_path: Path) -> None:
    weights = random_tensor((4,))
    found = _compared(tmp_path, {"a": ("BF16", weights)}, {"a": ("BF16", weights), "b": ("BF16", weights)})
    assert (found.identical, found.tensors, found.only_in_b) == (False, (), ("b",))


def test_numbers_that_are_not_finite_do_not_disturb(tmp_path: Path) -> None:
    a = random_tensor((1000,)).copy()
    a[:4] = [0x7FC0, 0x7F80, 0xFF80, 0x7F81]  # NaN, infinities, a signalling NaN
    b = pointwise([Scale(factor=1.25)], FLOATS["BF16"])(a)
    found = _difference(a, b, "BF16")
    assert found.explanation == Scale(factor=1.25)
    assert found.changed_elements == 996
    assert found.relative_change == pytest.approx(0.25, rel=1e-2)


def test_a_tensor_without_finite_numbers_in_common_is_compared_by_its_bits() -> None:
    found = _difference(np.full(3, 0x7F80, "<u2"), np.full(3, 0x3F80, "<u2"), "BF16")
    assert (found.changed_elements, found.explanation, found.relative_change) == (3, None, None)


def test_something_that_was_nothing_has_no_relative_change() -> None:
    found = _difference(np.zeros(8, "<u4"), np.full(8, 0x3F800000, "<u4"), "F32")
    assert found.relative_change is None
    assert found.largest_change == 1.0
    assert found.explanation is not None


def test_minus_zero_that_became_zero_is_a_change_of_bits() -> None:
    found = _difference(np.full(8, 0x8000, "<u2"), np.zeros(8, "<u2"), "BF16")
    assert (found.changed_elements, found.explanation) == (8, Zero())


def test_weights_near_the_end_of_float64_are_no_error() -> None:
    a = np.array([1.7e308, -1.7e308], dtype="<f8")
    found = _difference(a.view("<u8"), (-a).view("<u8"), "F64")
    assert found.changed_elements == 2
    assert found.largest_change is None
    assert found.relative_change is None


def test_a_difference_in_a_later_chunk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.checkpoint import Checkpoint

    real = Checkpoint.chunks
    monkeypatch.setattr(Checkpoint, "chunks", lambda self, tensor: real(self, tensor, size=32))
    a = random_tensor((1000,))
    b = a.copy()
    b[-1] ^= 1
    assert _difference(a, b, "BF16").changed_elements == 1
    assert _difference(a, pointwise([Scale(factor=0.5)], FLOATS["BF16"])(a), "BF16").explanation == Scale(factor=0.5)


def test_a_configuration_that_differs_is_a_difference(tmp_path: Path) -> None:
    tensors = {"w": ("BF16", random_tensor((4, 4)))}
    first = write_checkpoint(tmp_path / "a", tensors, config={"rope_theta": 1e4, "deep": {"x": 1}, "long": "y" * 999})
    other = write_checkpoint(tmp_path / "b", tensors, config={"rope_theta": 5.0, "deep": {"x": 1}, "bias": True})
    found = compare(open_checkpoint(first), open_checkpoint(other))
    assert not found.identical
    assert not found.tensors
    assert found.config[0] == "rope_theta: 10000.0 -> 5.0"
    assert found.config[1].startswith('long: "yyy')
    assert found.config[1].endswith("... -> absent")
    assert len(found.config[1]) < 230
    assert found.config[2] == "bias: absent -> true"
    assert compare(open_checkpoint(first), open_checkpoint(first)).identical
