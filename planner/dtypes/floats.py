"""The floating-point dtypes whose values the planner reads and writes: F16, BF16, F32, F64.

Stored elements travel as unsigned integers of their width ("patterns"), because bits are what must be kept. `decode`
gives their values in the working precision, float32 (float64 for F64); `encode` rounds values back to the nearest
pattern, ties to even (IEEE 754 roundTiesToEven, as ml_dtypes and torch do).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["FLOATS", "FloatDtype", "Patterns", "Values", "float_dtype"]

Patterns = NDArray[np.unsignedinteger[Any]]
Values = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class FloatDtype:
    """One floating-point dtype."""

    name: str
    """Its name in the safetensors format."""
    storage: np.dtype[Any]
    """The numpy dtype of a stored element."""
    pattern: np.dtype[Any]
    """The unsigned integer of the same width."""
    working: np.dtype[Any]
    """The precision in which its values are computed with."""

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return self.storage.itemsize

    @property
    def tabulable(self) -> bool:
        """Whether all its patterns fit in a table: a function of one element can then be computed once a pattern."""
        return self.itemsize <= 2

    def patterns(self, data: bytes | bytearray | memoryview) -> Patterns:
        """View little-endian bytes as patterns, without copying."""
        return np.frombuffer(data, dtype=self.pattern)

    def all_patterns(self) -> Patterns:
        """Every pattern there is, in order. Only for a `tabulable` dtype."""
        if not self.tabulable:
            raise ValueError(f"{self.name} has too many patterns for a table")
        return np.arange(2 ** (8 * self.itemsize), dtype=np.uint32).astype(self.pattern)

    def decode(self, patterns: Patterns) -> Values:
        """Values of stored patterns, exactly, in the working precision; same shape."""
        stored = patterns.view(self.storage)
        # A signalling NaN becomes a quiet one on the way; numpy calls that an invalid operation.
        with np.errstate(invalid="ignore"):
            return stored.astype(self.working, copy=False)

    def decode_float64(self, patterns: Patterns) -> NDArray[np.float64]:
        """Values of stored patterns, exactly, in float64, for sums; same shape."""
        with np.errstate(invalid="ignore"):  # a signalling NaN, again
            return self.decode(patterns).astype(np.float64, copy=False)

    def encode(self, values: Values) -> Patterns:
        """Nearest patterns, ties to even; beyond the largest finite value, infinity. Same shape."""
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(self.storage).view(self.pattern)


FLOATS: dict[str, FloatDtype] = {
    dtype.name: dtype
    for dtype in (
        FloatDtype("F16", np.dtype("<f2"), np.dtype("<u2"), np.dtype("<f4")),
        FloatDtype("BF16", np.dtype(ml_dtypes.bfloat16), np.dtype("<u2"), np.dtype("<f4")),
        FloatDtype("F32", np.dtype("<f4"), np.dtype("<u4"), np.dtype("<f4")),
        FloatDtype("F64", np.dtype("<f8"), np.dtype("<u8"), np.dtype("<f8")),
    )
}
"""The dtypes whose values are understood, by name."""


def float_dtype(name: str) -> FloatDtype | None:
    """The dtype of that name, or None if its values are not understood by this version."""
    return FLOATS.get(name)
