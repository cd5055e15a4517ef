"""Exact order statistics of a wide dtype in bounded memory, by radix selection.

The patterns of a float, with the sign handled, are ordered like the values. Each pass counts 16 bits of the keys,
below the digits already fixed for each wanted rank; two passes decide a float32, four a float64. Each pass reads the
tensor once, whatever the number of ranks. Method: radix selection (Knuth, The Art of Computer Programming 3, 5.2.5,
read from the most significant digit).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.dtypes import FloatDtype
from planner.dtypes.floats import Patterns

__all__ = ["order_statistics"]

_DIGIT = 16


def order_statistics(chunks: Callable[[], Iterable[Patterns]], dtype: FloatDtype, ranks: Sequence[int]) -> list[float]:
    """The elements of the given 1-based ranks among the finite elements, in ascending order of value."""
    bits = 8 * dtype.itemsize
    prefixes = [0] * len(ranks)
    remaining = list(ranks)
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = {prefix: np.zeros(2**_DIGIT, dtype=np.int64) for prefix in set(prefixes)}
        for patterns in chunks():
            keys = _ordered_keys(patterns[np.isfinite(dtype.decode(patterns))], bits)
            for prefix, count in counts.items():
                first = shift + _DIGIT == bits
                under = keys if first else keys[(keys >> np.uint64(shift + _DIGIT)) == prefix]
                digits = (under >> np.uint64(shift)) & np.uint64(2**_DIGIT - 1)
                count += np.bincount(digits.astype(np.int64), minlength=2**_DIGIT)
        for place, prefix in enumerate(prefixes):
            cumulative = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(cumulative, remaining[place], side="left"))
            remaining[place] -= int(cumulative[digit - 1]) if digit else 0
            prefixes[place] = prefix << _DIGIT | digit
    keys = np.array(prefixes, dtype=np.uint64)
    return [float(value) for value in dtype.decode(_patterns_of(keys, bits).astype(dtype.pattern))]


def _ordered_keys(patterns: Patterns, bits: int) -> NDArray[np.uint64]:
    """Unsigned integers in the order of the values: negative floats reversed, below the positive ones."""
    keys = patterns.astype(np.uint64)
    sign = np.uint64(1 << (bits - 1))
    everything = np.uint64(2**bits - 1)
    return np.where(keys & sign, keys ^ everything, keys | sign)


def _patterns_of(keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    sign = np.uint64(1 << (bits - 1))
    everything = np.uint64(2**bits - 1)
    return np.where(keys & sign, keys ^ sign, keys ^ everything)
