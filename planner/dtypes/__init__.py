"""How numbers lie in bytes."""

from __future__ import annotations

from planner.dtypes.floats import FLOATS, FloatDtype, float_dtype
from planner.dtypes.numbers import NUMBERS, NumberDtype, number_dtype
from planner.dtypes.sizes import BITS, bytes_needed

__all__ = [
    "BITS",
    "FLOATS",
    "NUMBERS",
    "FloatDtype",
    "NumberDtype",
    "bytes_needed",
    "float_dtype",
    "number_dtype",
]
