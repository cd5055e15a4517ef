"""Singular values of a whole matrix, changed, with the same bits on every machine.

This is the one family of operations that holds a tensor in memory: the matrix in float64 three times, and with k rows
or columns, whichever are fewer, four matrices of k · k: about 8 · (3·rows·columns + 4·k²) bytes.

The singular vectors of the short side are the eigenvectors of the matrix times its transpose. That product has lost
singular values below 1e-8 of the largest, and is not sure of the lower ones above it. So only the vectors of the upper
values are taken from it; the rest of the matrix, turned away from them, is treated in the same way by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from planner.operations.base import Block, Place, Values
from planner.operations.sums import add_product, squares
from planner.operations.symmetric import eigenvectors

__all__ = ["rows_of", "singular_vectors", "with_singular_values"]

Float64 = NDArray[np.float64]
_MOST_ELEMENTS = 2**28
"""2 GiB in float64."""
_SURE = 1e-2
"""Singular values above this part of the largest are taken as found: the product's rounding is that of the largest
squared, and divided by one of them it is a hundred roundings of the largest."""
_ROUNDING = 2.0**-50
"""Part of the largest singular value below which there is nothing but rounding."""
_STRIP = 256
"""Rows of a symmetric product that are computed together."""


def with_singular_values(blocks: Iterable[Block], place: Place, change: Callable[[Float64], Float64]) -> Float64:
    """The whole matrix [rows, columns], float64, its singular values s, largest first, replaced by change(s).

    It is W + U·diag(change(s) - s)·Vᵀ over the values that change: where none does, every bit stays. What is 0 stays
    0. Raises ValueError for a matrix of more than 2^28 elements, one that holds NaN or an infinity, and one whose
    factors are not found.
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
    # A power of two changes no digit, and then no square overflows.
    exponent = int(np.frexp(np.abs(matrix).max())[1])
    left, before, right = singular_vectors(
        np.ascontiguousarray(np.ldexp(matrix if rows <= columns else matrix.T, -exponent))
    )
    before = np.ldexp(before, exponent)
    difference = change(before) - before
    changed = (difference != 0) & (before > 0)
    if changed.any():
        weighted = np.ascontiguousarray((left[changed] * difference[changed, None]).T)
        right = right[changed]
        added = np.zeros((len(left), right.shape[1]))
        add_product(weighted, right, added, 0, len(added), 0)
        matrix += added if rows <= columns else added.T
    return matrix


def singular_vectors(matrix: Float64) -> tuple[Float64, Float64, Float64]:
    """Left singular vectors as rows [m, m], singular values [m], largest first, right ones as rows [m, n].

    For [m, n] with m ≤ n and elements up to 1, which is used up. What belongs to a singular value of 0 is 0 on the
    right. The singular values are right to about 1e-14 of the largest. Raises ValueError where they are not found.
    """
    count = len(matrix)
    left, right = np.eye(count), matrix
    first, largest = 0, 0.0
    while first < count:
        turn = eigenvectors(_times_its_transpose(right[first:]))
        for turned in (left, right):
            product = np.zeros((count - first, turned.shape[1]))
            add_product(turn, turned[first:], product, 0, len(product), 0)
            turned[first:] = product
            del product
        values = np.sqrt(squares(right[first:]))
        most = float(values.max())
        largest = largest or most
        if most <= _ROUNDING * largest:
            break
        unsure = np.flatnonzero(values < _SURE * most)
        first += max(int(unsure[0]), 1) if unsure.size else len(values)
    values = np.sqrt(squares(right))
    order = np.argsort(-values, kind="stable")
    left, values, right = left[order], values[order], right[order]
    right /= np.where(values > 0, values, 1.0)[:, None]
    return left, values, right


def _times_its_transpose(matrix: Float64) -> Float64:
    """matrix @ matrix.T, each element below the diagonal being the one above it."""
    count = len(matrix)
    across, product = np.ascontiguousarray(matrix.T), np.zeros((count, count))
    for first in range(0, count, _STRIP):
        add_product(matrix, across, product, first, min(first + _STRIP, count), first)
    for first in range(0, count, _STRIP):
        last = min(first + _STRIP, count)
        product[last:, first:last] = product[first:last, last:].T
    return product


def rows_of(values: Values, place: Place) -> Values:
    """The block's rows of the matrix that was observed, in the dtype of `values`."""
    with np.errstate(over="ignore"):
        rows: Values = place.observed[place.first : place.first + len(values)].astype(values.dtype)
    return rows
