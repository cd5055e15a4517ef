"""The dtypes whose values can be read: what a profile describes.

Some of them are also computed with and written (`floats.FLOATS`); 8-bit floats and integers are read only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from planner.dtypes.floats import FLOATS, Patterns

__all__ = ["NUMBERS", "NumberDtype", "number_dtype"]


@dataclass(frozen=True)
class NumberDtype:
    """One dtype of real numbers."""

    name: str
    """Its name in the safetensors format."""
    storage: np.dtype[Any]
    """The numpy dtype of a stored element."""
    smallest_normal: float
    """The smallest magnitude with full precision; 0 for integers, which all have it."""

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return self.storage.itemsize

    @property
    def pattern(self) -> np.dtype[Any]:
        """The unsigned integer of the same width, little-endian."""
        return np.dtype(f"<u{self.storage.itemsize}")

    @property
    def tabulable(self) -> bool:
        """Whether all its patterns fit in a table."""
        return self.itemsize <= 2

    @property
    def integer(self) -> bool:
        """Whether its values are integers."""
        return self.storage.kind in "iu"

    def all_patterns(self) -> Patterns:
        """Every pattern there is, in order. Only for a `tabulable` dtype."""
        if not self.tabulable:
            raise ValueError(f"{self.name} has too many patterns for a table")
        return np.arange(2 ** (8 * self.itemsize), dtype=np.uint32).astype(self.pattern)

    def decode_float64(self, patterns: Patterns) -> NDArray[np.float64]:
        """Values of stored patterns in float64; same shape.

        Exact, but for 64-bit integers beyond 2^53, which are rounded to nearest.
        """
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            stored = patterns.view(self.storage)
            if self.itemsize == 1 and not self.integer:
                stored = stored.astype(np.float32)  # the way that ml_dtypes knows for each of its own
            return stored.astype(np.float64, copy=False)


def _float(name: str, storage: Any) -> NumberDtype:
    limits: Any = ml_dtypes.finfo
    return NumberDtype(name, np.dtype(storage), float(limits(storage).smallest_normal))


NUMBERS: dict[str, NumberDtype] = {
    dtype.name: dtype
    for dtype in (
        *(_float(dtype.name, dtype.storage) for dtype in FLOATS.values()),
        _float("F8_E4M3", ml_dtypes.float8_e4m3fn),
        _float("F8_E5M2", ml_dtypes.float8_e5m2),
        _float("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        _float("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
        _float("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        *(
            NumberDtype(f"{kind.upper()}{8 * size}", np.dtype(f"<{kind}{size}"), 0.0)
            for kind in "iu"
            for size in (1, 2, 4, 8)
        ),
        NumberDtype("BOOL", np.dtype("u1"), 0.0),
    )
}
"""The dtypes whose values are read, by name."""


def number_dtype(name: str) -> NumberDtype | None:
    """The dtype of that name, or None if its values are not read by this version."""
    return NUMBERS.get(name)
