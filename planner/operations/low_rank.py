"""Products of two thin matrices, added to a tensor: the arithmetic that LoRA merges share.

To equal another program's merge in every bit, the products must be summed as its matrix product sums them. A float32
matrix product of torch on a processor with fused multiply-add (measured: torch 2.13 with MKL on x86, ranks to 384, both
sides of more than one element) is, for each element, the chain s ← fma(b[k], a[k], s) over k in order. numpy's own
product is not, from rank 33 on. So the chain is computed here: a product of two float32 is exact in float64, and the
sum is rounded to float32 as if it had not been rounded to float64 on the way.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.operations.base import Place, Values

__all__ = ["Rounding", "added", "low_rank_delta"]

Rounding = Literal["once", "delta_first"]
"""Where the sum of a stored tensor and a change is rounded to the stored dtype."""

_TILE = 2**15
"""Elements computed at once: they and what is made of them fit in a processor's cache."""
_DROPPED = np.int64(2**29 - 1)
_HALFWAY = np.int64(2**28)
"""The bits of a float64 that a float32 has no place for, and their value half-way between two float32."""


def low_rank_delta(b: Values, a: Values, scaling: float, working: np.dtype[Any]) -> Values:
    """scaling · (b @ a) for b [rows, r] and a [r, columns], in `working`, float32 or float64.

    b and a are rounded to `working` first, the product is summed over r in order, in float32 with one rounding a step
    (see above), and multiplied by the scaling rounded to `working`. In float64 a step rounds twice. Each element
    depends on its row of b and its column of a alone.
    """
    (rows, rank), columns = b.shape, a.shape[1]
    left, right = (np.ascontiguousarray(array.astype(working).astype(np.float64)) for array in (b, a))
    found = np.zeros((rows, columns), dtype=working)
    height = max(1, _TILE // max(columns, 1))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for top in range(0, rows, height):
            tile = found[top : top + height]
            for index in range(rank):
                _add_product(tile, left[top : top + height, index, None], right[index])
        found *= working.type(scaling)
    return found


def _add_product(sums: Values, left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    """sums ← sums + left · right, rounded once where sums are float32."""
    wide = sums.astype(np.float64)
    product = left * right
    total = wide + product
    if sums.dtype == np.float32:
        halfway = (total.view(np.int64) & _DROPPED) == _HALFWAY
        if halfway.any():
            total[halfway] = _to_odd(wide[halfway], product[halfway], total[halfway])
    sums[...] = total


def _to_odd(x: NDArray[np.float64], y: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """x + y rounded to odd in the last bit of float64, where `total` is x + y rounded to nearest.

    Rounding that to float32 gives what rounding x + y itself would (Boldo and Melquiond 2008, "Emulation of FMA and
    correctly rounded sums: proved algorithms using rounding to odd"). Half-way between two float32, the last bit is 0.
    """
    # What rounding lost (Knuth's TwoSum).
    part = total - x
    lost = (x - (total - part)) + (y - part)
    away = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where(lost == 0, total.view(np.int64), total.view(np.int64) + away).view(np.float64)


def added(values: Values, delta: Values, rounding: Rounding, place: Place) -> Values:
    """values + delta. With "delta_first", `delta` is rounded to the stored dtype first.

    Raises ValueError where that is asked for and the stored dtype is not known.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if rounding == "delta_first":
            if place.rounded is None:
                raise ValueError("the stored dtype is not known, so nothing can be rounded to it first")
            delta = place.rounded(delta)
        return values + delta
