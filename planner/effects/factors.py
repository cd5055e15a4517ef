"""Factors: one number for all channels, or one a channel; NaN where nothing is known of a channel.

Zero absorbs what is unknown: zero times anything finite is zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["UNKNOWN", "Factors", "is_unknown", "known_equal", "times", "uniform"]

Factors = float | NDArray[np.float64]

UNKNOWN = float("nan")
"""Any number at all."""

TOLERANCE = 1e-9
"""Relative difference below which two factors count as equal; no dtype of a checkpoint resolves it."""


def times(a: Factors, b: Factors) -> Factors:
    """The product, channel by channel."""
    if isinstance(a, float) and isinstance(b, float):
        return 0.0 if a == 0 or b == 0 else a * b
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = np.multiply(a, b)
    return np.where((np.asarray(a) == 0) | (np.asarray(b) == 0), 0.0, product)


def uniform(factors: Factors) -> Factors:
    """The one number that all channels share, as a float; the array itself where they do not share one."""
    if isinstance(factors, float) or not factors.size:
        return factors if isinstance(factors, float) else 1.0
    first = float(factors.flat[0])
    if np.isnan(factors).all():
        return UNKNOWN
    if np.isnan(first) or not np.allclose(factors, first, rtol=TOLERANCE, atol=0.0):
        return factors
    return first


def is_unknown(factors: Factors) -> bool:
    """Whether some channel is unknown."""
    return factors != factors if isinstance(factors, float) else bool(np.isnan(factors).any())


def known_equal(a: Factors, b: Factors) -> NDArray[np.bool_] | bool:
    """Where two factors are known and equal."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
    return np.isclose(a, b, rtol=TOLERANCE, atol=0.0)
