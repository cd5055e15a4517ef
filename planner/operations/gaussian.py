"""Gaussian noise with the same bits on every machine, whatever the version of numpy.

Two things of numpy's own may differ: which numbers its Generator makes of the random words (its authors keep the right
to find a better method), and the last bits of the C library's exp and log. The words themselves, Philox4x64-10
(Salmon, Moraes, Dror and Shaw 2011), are promised to stay (NEP 19). So they are turned into numbers here, by
Marsaglia's polar method (Marsaglia and Bray 1964), with a logarithm made of additions, multiplications and divisions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["logarithm", "standard_normal"]

Float64 = NDArray[np.float64]
_LN_2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_TERMS = 12
"""Of the series of the logarithm: the next would be below 1e-18 of the sum."""


def standard_normal(key: int, stream: int, count: int) -> Float64:
    """The first `count` numbers of stream `stream`, below 2^64, of N(0, 1) for a key below 2^128, in float64.

    The numbers of a stream do not depend on how many of them are asked for.
    """
    # The upper word of the counter names the stream; drawing counts in the lowest and never gets there.
    words = np.random.Philox(key=key, counter=stream << 192)
    found: list[Float64] = []
    missing = count
    while missing > 0:
        found.append(_pairs(words.random_raw(2 * int(0.65 * missing + 64))))
        missing -= found[-1].size
    return np.concatenate([*found, np.empty(0)])[:count]


def _pairs(words: NDArray[Any]) -> Float64:
    """Two numbers for each two words that make a point inside of the unit circle, which π/4 of them do."""
    points = (words >> np.uint64(11)).astype(np.float64).reshape(-1, 2) * 2.0**-52 - 1.0
    squares = points[:, 0] * points[:, 0] + points[:, 1] * points[:, 1]
    inside = (squares < 1) & (squares > 0)
    points, squares = points[inside], squares[inside]
    numbers: Float64 = points * np.sqrt(-2.0 * logarithm(squares) / squares)[:, None]
    return numbers.reshape(-1)


def logarithm(values: Float64) -> Float64:
    """Natural logarithm of finite numbers above 0, right to a few roundings; one result on every machine.

    x = m · 2^e with m from √½ to √2; ln m = 2·(z + z³/3 + z⁵/5 + ···) with z = (m - 1) / (m + 1).
    """
    part, exponent = np.frexp(values)
    low = part < _SQRT_HALF
    part = np.where(low, 2.0 * part, part)
    z = (part - 1.0) / (part + 1.0)
    square = z * z
    total = np.full_like(z, 1.0 / (2 * _TERMS + 1))
    for term in range(_TERMS - 1, -1, -1):
        total *= square
        total += 1.0 / (2 * term + 1)
    found: Float64 = (exponent - low) * _LN_2 + 2.0 * z * total
    return found
