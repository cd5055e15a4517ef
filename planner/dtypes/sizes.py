"""How many bits an element of each dtype of the safetensors format takes.

A tensor whose size is known can be hashed, copied and verified even where its values are not understood.
"""

from __future__ import annotations

import math

from planner.errors import UnknownDtype

__all__ = ["BITS", "bytes_needed"]

BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
"""Bits an element, by the name the format gives the dtype."""


def bytes_needed(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this shape. Raises `UnknownDtype`; ValueError where the bits fill no whole byte."""
    if dtype not in BITS:
        raise UnknownDtype(
            f"the dtype {dtype[:40]!r} is not one of the safetensors format",
            hint="known dtypes: " + ", ".join(BITS),
        )
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8:
        raise ValueError(f"{math.prod(shape)} elements of {dtype} fill no whole number of bytes")
    return bits // 8
