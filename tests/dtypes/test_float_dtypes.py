"""Floats and their bytes, against torch: every 16-bit pattern, and the rounding of random 32-bit ones."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dtypes import BITS, FLOATS, bytes_needed, float_dtype
from planner.errors import UnknownDtype

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}
Array = np.ndarray[Any, Any]


def in_torch(patterns: Array, dtype: str) -> torch.Tensor:
    """The same bytes as a tensor of torch."""
    return torch.frombuffer(bytearray(patterns.tobytes()), dtype=TORCH[dtype])


def stored(tensor: torch.Tensor) -> Array:
    """The bits of a tensor of torch."""
    return tensor.view(SIGNED[tensor.element_size()]).numpy().view(f"<u{tensor.element_size()}")


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_all_patterns_decode_to_the_values_that_torch_sees(name: str) -> None:
    dtype = FLOATS[name]
    patterns = dtype.all_patterns()
    assert len(np.unique(patterns)) == 65_536
    ours = dtype.decode(patterns)
    theirs = in_torch(patterns, name).float().numpy()
    assert ours.dtype == np.float32
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    number = ~np.isnan(ours)
    assert np.array_equal(ours[number].view("<u4"), theirs[number].view("<u4"))


@pytest.mark.parametrize("name", ["F32", "F64"])
def test_wide_patterns_decode_to_themselves(name: str) -> None:
    dtype = FLOATS[name]
    patterns = np.random.default_rng(1).integers(0, 2 ** (8 * dtype.itemsize), 10_000, dtype=dtype.pattern)
    assert np.array_equal(dtype.encode(dtype.decode(patterns)), patterns)
    with pytest.raises(ValueError, match="too many patterns"):
        dtype.all_patterns()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_what_is_decoded_is_encoded_back_to_the_same_bits(name: str) -> None:
    dtype = FLOATS[name]
    patterns = dtype.all_patterns()
    number = patterns[~np.isnan(dtype.decode(patterns))]
    assert np.array_equal(dtype.encode(dtype.decode(number)), number)


def float32_of_every_kind() -> Array:
    """Random patterns, subnormals, halves between neighbours and their neighbours, and what overflows 16 bits."""
    rng = np.random.default_rng(2)
    random = rng.integers(0, 2**32, 400_000, dtype="<u4")
    subnormal = rng.integers(0, 2**23, 20_000, dtype="<u4")
    halfway = rng.integers(0, 2**16, 50_000, dtype="<u4") << 16 | 0x8000  # for BF16
    within_f16 = rng.integers(0x33000000, 0x47800000, 100_000, dtype="<u4")
    halfway_f16 = within_f16 & ~np.uint32(0x1FFF) | 0x1000
    edges = np.array(
        [65504, 65519.996, 65520, 65536, 3.3895e38, 3.4028e38, np.inf, 0, 2**-24, 2**-25, 1.0000001 * 2**-25, 1e-45],
        dtype="<f4",
    ).view("<u4")
    positive = np.concatenate(
        [random, subnormal, halfway, halfway - 1, halfway + 1, within_f16, halfway_f16, halfway_f16 + 1, edges]
    )
    patterns = np.concatenate([positive, positive ^ np.uint32(2**31)])
    return patterns[~np.isnan(patterns.view("<f4"))]


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_rounding_to_sixteen_bits_is_that_of_torch(name: str) -> None:
    patterns = float32_of_every_kind()
    ours = FLOATS[name].encode(patterns.view("<f4"))
    assert np.array_equal(ours, stored(in_torch(patterns, "F32").to(TORCH[name])))


@given(st.floats(width=32, allow_nan=False), st.sampled_from(["F16", "BF16"]))
@settings(deadline=None)
def test_any_float32_rounds_as_in_torch(value: float, name: str) -> None:
    ours = FLOATS[name].encode(np.array([value], dtype="<f4"))
    assert ours.item() == stored(torch.tensor([value], dtype=torch.float32).to(TORCH[name])).item()


@pytest.mark.parametrize(
    ("name", "value", "pattern"),
    [
        ("BF16", 1.0, 0x3F80),
        ("BF16", 1 + 2**-8, 0x3F80),  # halfway: to even, down
        ("BF16", 1 + 3 * 2**-8, 0x3F82),  # halfway: to even, up
        ("BF16", 1 + 2**-8 + 2**-20, 0x3F81),
        ("BF16", 3.4e38, 0x7F80),
        ("BF16", -0.0, 0x8000),
        ("F16", 1.0, 0x3C00),
        ("F16", 65520.0, 0x7C00),
        ("F16", 65519.0, 0x7BFF),
        ("F16", 2**-24, 0x0001),
        ("F16", 2**-25, 0x0000),
        ("F32", 1.0, 0x3F800000),
        ("F64", -1.0, 0xBFF0000000000000),
    ],
)
def test_patterns_known_by_heart(name: str, value: float, pattern: int) -> None:
    dtype = FLOATS[name]
    assert dtype.encode(np.array([value], dtype=dtype.working)).tolist() == [pattern]


def test_bytes_are_read_as_little_endian_without_a_copy() -> None:
    data = bytearray(struct.pack("<3H", 0x3F80, 0x4000, 0xC040))
    patterns = FLOATS["BF16"].patterns(data)
    assert patterns.tolist() == [0x3F80, 0x4000, 0xC040]
    assert FLOATS["BF16"].decode(patterns).tolist() == [1.0, 2.0, -3.0]
    data[0:2] = b"\0\0"
    assert patterns[0] == 0


def test_not_a_number_stays_one_in_sixteen_bits() -> None:
    for name in ("F16", "BF16"):
        dtype = FLOATS[name]
        # A NaN whose payload lies in the bits that are cut off must not become infinity.
        payloads = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0x7FFFFFFF], dtype="<u4").view("<f4")
        assert np.isnan(dtype.decode(dtype.encode(payloads))).all()


def test_a_dtype_that_is_not_understood_is_none() -> None:
    assert float_dtype("BF16") is FLOATS["BF16"]
    assert float_dtype("I64") is None
    assert float_dtype("F8_E4M3") is None


@pytest.mark.parametrize("name", BITS)
def test_sizes_follow_from_the_shape(name: str) -> None:
    assert bytes_needed(name, (8, 3)) == 3 * BITS[name]
    assert bytes_needed(name, (0, 7)) == 0
    if BITS[name] % 8 == 0:
        assert bytes_needed(name, ()) == BITS[name] // 8


def test_sizes_agree_with_torch() -> None:
    for name, dtype in TORCH.items():
        assert bytes_needed(name, (5,)) == torch.empty(5, dtype=dtype).nbytes
        assert FLOATS[name].itemsize == dtype.itemsize


def test_elements_that_fill_no_whole_byte_have_no_size() -> None:
    with pytest.raises(ValueError, match="3 elements of F4"):
        bytes_needed("F4", (3,))
    with pytest.raises(UnknownDtype, match="F3"):
        bytes_needed("F3", (8,))
