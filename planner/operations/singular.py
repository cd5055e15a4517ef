"""Singular values of a whole matrix, changed.

This is the one family of operations that holds a tensor in memory: the matrix in float64 twice and its two factors,
about 8 · (2·rows·columns + (rows + columns)·min(rows, columns)) bytes, and as much again while they are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from planner.operations.base import Block, Place, Values

__all__ = ["rows_of", "with_singular_values"]

Float64 = NDArray[np.float64]
_MOST_ELEMENTS = 2**28
"""2 GiB in float64."""


def with_singular_values(blocks: Iterable[Block], place: Place, change: Callable[[Float64], Float64]) -> Float64:
    """The whole matrix [rows, columns], float64, its singular values s, largest first, replaced by change(s).

    It is W + U·diag(change(s) - s)·Vᵀ over the values that change: where none does, every bit stays. The
    factors are LAPACK's gesdd in float64. Raises ValueError for a matrix of more than 2^28 elements, one that holds
    NaN or an infinity, and one whose factors are not found.
    """
    rows, columns = place.shape
    if rows * columns > _MOST_ELEMENTS:
        raise ValueError(f"{rows:,} x {columns:,} elements are too many for singular values; at most 2^28 are taken")
    matrix = np.zeros(place.shape, dtype=np.float64)
    for block in blocks:
        matrix[block.first : block.first + len(block.values)] = block.values
    if not np.isfinite(matrix).all():
        raise ValueError("a matrix that holds NaN or an infinity has no singular values")
    if not matrix.size:
        return matrix
    try:
        left, before, right = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        raise ValueError("the singular values were not found: the iteration did not converge") from None
    difference = change(before) - before
    changed = difference != 0
    if changed.any():
        matrix += (left[:, changed] * difference[changed]) @ right[changed]
    return matrix


def rows_of(values: Values, place: Place) -> Values:
    """The block's rows of the matrix that was observed, in the dtype of `values`."""
    with np.errstate(over="ignore"):
        rows: Values = place.observed[place.first : place.first + len(values)].astype(values.dtype)
    return rows
