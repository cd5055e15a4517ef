"""The dtypes that are only read, against torch, ml_dtypes and the integers of Python."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planner.dtypes import BITS, FLOATS, NUMBERS, number_dtype

TORCH = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "U16": torch.uint16,
}
WIDE = {"F32": torch.float32, "F64": torch.float64, "I32": torch.int32, "I64": torch.int64, "U32": torch.uint32}


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equal bit for bit, but for which NaN it is."""
    number = ~np.isnan(theirs)
    return bool((np.isnan(ours) == ~number).all() and (ours[number].view("<u8") == theirs[number].view("<u8")).all())


@pytest.mark.parametrize("name", TORCH)
def test_all_patterns_decode_to_the_values_that_torch_sees(name: str) -> None:
    dtype = NUMBERS[name]
    patterns = dtype.all_patterns()
    assert np.array_equal(patterns, np.arange(2 ** (8 * dtype.itemsize)))
    theirs = torch.frombuffer(bytearray(patterns.tobytes()), dtype=TORCH[name])
    # float32 first: torch has no direct way to float64 from some of them
    theirs = (theirs.float() if name.startswith("F8") else theirs).double().numpy()
    assert same(dtype.decode_float64(patterns), theirs)


@pytest.mark.parametrize("name", WIDE)
def test_random_wide_patterns_decode_to_the_values_that_torch_sees(name: str) -> None:
    dtype = NUMBERS[name]
    patterns = np.random.default_rng(0).integers(0, 2 ** (8 * dtype.itemsize), 50_000, dtype=dtype.pattern)
    theirs = torch.frombuffer(bytearray(patterns.tobytes()), dtype=WIDE[name]).double().numpy()
    assert same(dtype.decode_float64(patterns), theirs)


@pytest.mark.parametrize("name", [name for name in NUMBERS if name.startswith("F8")])
def test_8_bit_floats_are_those_of_ml_dtypes(name: str) -> None:
    patterns = np.arange(256, dtype=np.uint8)
    theirs = patterns.view(NUMBERS[name].storage)
    assert same(NUMBERS[name].decode_float64(patterns), np.array([float(value) for value in theirs]))
    values = NUMBERS[name].decode_float64(patterns)
    normal = NUMBERS[name].smallest_normal
    assert normal == float(ml_dtypes.finfo(NUMBERS[name].storage).smallest_normal)
    assert normal in values


@pytest.mark.parametrize(
    ("name", "pattern", "value"),
    [
        ("F8_E4M3", 0x7E, 448.0),  # OCP 8-bit floating point specification, table 1
        ("F8_E4M3", 0x01, 2.0**-9),
        ("F8_E4M3", 0x80, -0.0),
        ("F8_E5M2", 0x7B, 57344.0),
        ("F8_E5M2", 0x7C, np.inf),
        ("F8_E5M2", 0x01, 2.0**-16),
        ("F8_E4M3FNUZ", 0x7F, 240.0),
        ("F8_E5M2FNUZ", 0x7F, 57344.0),
        ("F8_E8M0", 0x00, 2.0**-127),
        ("F8_E8M0", 0x7F, 1.0),
        ("F8_E8M0", 0xFE, 2.0**127),
        ("I8", 0x80, -128.0),
        ("U8", 0x80, 128.0),
        ("I16", 0x8000, -32768.0),
        ("U32", 0xFFFFFFFF, 4294967295.0),
        ("BOOL", 1, 1.0),
    ],
)
def test_patterns_known_by_heart(name: str, pattern: int, value: float) -> None:
    [found] = NUMBERS[name].decode_float64(np.array([pattern], NUMBERS[name].pattern)).tolist()
    assert (found, np.signbit(found)) == (value, np.signbit(value))


def test_the_nan_of_8_bit_floats_are_where_the_formats_have_them() -> None:
    patterns = np.arange(256, dtype=np.uint8)
    nan = {
        name: set(np.flatnonzero(np.isnan(NUMBERS[name].decode_float64(patterns)))) for name in TORCH if "F8" in name
    }
    assert nan == {
        "F8_E4M3": {0x7F, 0xFF},
        "F8_E5M2": {0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF},
        "F8_E4M3FNUZ": {0x80},
        "F8_E5M2FNUZ": {0x80},
        "F8_E8M0": {0xFF},
    }


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_64_bit_integer_is_rounded_to_the_nearest_float64(value: int) -> None:
    [found] = NUMBERS["I64"].decode_float64(np.array([value], "<i8").view("<u8")).tolist()
    assert found == float(value)  # Python's conversion rounds to nearest, ties to even


@given(st.integers(0, 2**64 - 1))
def test_so_is_an_unsigned_one(value: int) -> None:
    [found] = NUMBERS["U64"].decode_float64(np.array([value], "<u8")).tolist()
    assert found == float(value)


@pytest.mark.parametrize("value", [2**53 - 1, 2**53, 2**53 + 1, 2**53 + 3, 2**63 - 513, 2**63 - 512, 2**63 - 1])
def test_64_bit_integers_are_exact_up_to_2_to_the_53_and_round_to_even_beyond(value: int) -> None:
    for name, sign in (("I64", 1), ("I64", -1), ("U64", 1)):
        raw = np.array([(sign * value) % 2**64], "<u8")
        assert NUMBERS[name].decode_float64(raw).tolist() == [float(sign * value)]


@pytest.mark.parametrize("name", NUMBERS)
def test_sizes_and_kinds(name: str) -> None:
    dtype = NUMBERS[name]
    assert number_dtype(name) is dtype
    assert dtype.itemsize * 8 == BITS[name] == dtype.pattern.itemsize * 8
    assert dtype.tabulable == (BITS[name] <= 16)
    assert dtype.integer == (name[0] in "IU" or name == "BOOL")
    if not dtype.tabulable:
        with pytest.raises(ValueError, match="too many patterns"):
            dtype.all_patterns()


def test_every_dtype_of_8_bits_and_more_but_complex_numbers_is_read() -> None:
    assert set(NUMBERS) == {name for name, size in BITS.items() if size >= 8} - {"C64"}
    assert set(FLOATS) < set(NUMBERS)
    assert number_dtype("F4") is None
