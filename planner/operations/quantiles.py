"""From a share of a tensor's elements ("beyond the 0.99 quantile") to the exact range of values that holds them.

"The top 10 %" can mean the largest numbers or the largest magnitudes; `of` says which. A quantile is an element of the
tensor: the order statistic of rank ceil(n·q), as `numpy.quantile(..., method="inverted_cdf")` and the profile take it,
with q the decimal number that it is written as. Elements equal to it are in on both sides, so that a range can hold
more elements than the share asked for; `count` says how many.
Infinities are numbers here and NaN are none: they are never meant, and not counted in n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.dtypes import FloatDtype, NumberDtype
from planner.operations.base import Values
from planner.operations.selection import ValueRanges

__all__ = ["Beyond", "Of", "Side", "beyond_quantile_of_counts", "beyond_quantile_of_values"]

Of = Literal["magnitude", "value"]
"""What is put in order: |w| or w."""
Side = Literal["above", "below"]
"""Which elements are meant: those at or above the quantile, or those at or below it."""


@dataclass(frozen=True)
class Beyond:
    """The elements on one side of a quantile."""

    ranges: ValueRanges
    """Where they lie; no range at all where the tensor holds no number."""
    count: int
    """How many they are, those equal to the quantile included."""
    threshold: float | None
    """The quantile, of |w| or of w; None where the tensor holds no number."""


def beyond_quantile_of_counts(
    counts: NDArray[np.integer[Any]], dtype: FloatDtype | NumberDtype, quantile: float, *, of: Of, side: Side
) -> Beyond:
    """Of a tensor whose patterns occur so often: `counts` has shape [2^bits], index = pattern.

    Raises ValueError for a quantile outside of [0, 1], or counts of another dtype.
    """
    patterns = dtype.all_patterns()
    if counts.shape != patterns.shape:
        raise ValueError(f"{dtype.name} has {patterns.size} patterns, not {counts.size}")
    occurring = patterns[counts > 0]
    values = dtype.decode_float64(occurring)
    numbers = ~np.isnan(values)
    return _beyond(values[numbers], counts[occurring[numbers]].astype(np.int64), quantile, of, side)


def beyond_quantile_of_values(values: Values, quantile: float, *, of: Of, side: Side) -> Beyond:
    """Of a tensor with these values, of any shape. Takes a copy of them and the time to sort it.

    Raises ValueError for a quantile outside of [0, 1].
    """
    distinct, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    return _beyond(distinct.astype(np.float64), counts.astype(np.int64), quantile, of, side)


def _beyond(values: NDArray[np.float64], counts: NDArray[np.int64], quantile: float, of: Of, side: Side) -> Beyond:
    if not 0 <= quantile <= 1:
        raise ValueError(f"a quantile lies between 0 and 1; {quantile} does not")
    if not values.size:
        return Beyond(ValueRanges(()), 0, None)
    keys = np.abs(values) if of == "magnitude" else values
    order = np.argsort(keys, kind="stable")
    keys, up_to = keys[order], np.cumsum(counts[order])
    rank = max(math.ceil(Fraction(str(quantile)) * int(up_to[-1])), 1)
    threshold = float(keys[np.searchsorted(up_to, rank)]) + 0.0  # never -0
    meant = keys >= threshold if side == "above" else keys <= threshold
    return Beyond(_ranges(threshold, of, side), int(np.diff(up_to, prepend=0)[meant].sum()), threshold)


def _ranges(threshold: float, of: Of, side: Side) -> ValueRanges:
    if side == "below":
        return ValueRanges(((-threshold if of == "magnitude" else -math.inf, threshold),))
    if of == "value":
        return ValueRanges(((threshold, math.inf),))
    return ValueRanges(((-math.inf, -threshold), (threshold, math.inf)))
