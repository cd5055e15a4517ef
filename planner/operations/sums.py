"""Sums of products in float64, in one order for every machine.

numpy and BLAS sum in the order that suits the processor. Here eight running sums take the terms in turn and are added
up pairwise at the end: the order depends on the length alone, and the compiler can keep the eight in one register.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.machine_code import exact
from planner.operations.base import Values

__all__ = ["add_product", "dot", "dots", "squares"]

Float64 = NDArray[np.float64]


def dot(left: Values, right: Values) -> float:
    """The inner product of two vectors of one length, in float64."""
    return float(dots(left[None, :], right[None, :])[0, 0])


def dots(left: Values, right: Values) -> Float64:
    """The inner product of each row of [m, n] with each row of [k, n]: [m, k], in float64.

    Each of them depends on its two rows alone.
    """
    found = np.empty((len(left), len(right)), dtype=np.float64)
    _dots(_wide(left), _wide(right), found)
    return found


def squares(values: Values) -> Float64:
    """The squared norm of each row of [m, n]: [m], in float64. Each depends on its row alone."""
    wide, found = _wide(values), np.empty((len(values), 1), dtype=np.float64)
    for index in range(len(wide)):
        _dots(wide[index : index + 1], wide[index : index + 1], found[index : index + 1])
    return found[:, 0]


def _wide(values: Values) -> Float64:
    return np.ascontiguousarray(values, dtype=np.float64)


@exact("void(float64[:, ::1], float64[:, ::1], float64[:, ::1])")
def _dots(left: Any, right: Any, found: Any) -> None:
    for i in range(left.shape[0]):
        x = left[i]
        for j in range(right.shape[0]):
            y = right[j]
            a = b = c = d = e = f = g = h = 0.0
            for block in range(x.size // 8):
                k = 8 * block
                a += x[k] * y[k]
                b += x[k + 1] * y[k + 1]
                c += x[k + 2] * y[k + 2]
                d += x[k + 3] * y[k + 3]
                e += x[k + 4] * y[k + 4]
                f += x[k + 5] * y[k + 5]
                g += x[k + 6] * y[k + 6]
                h += x[k + 7] * y[k + 7]
            total = ((a + b) + (c + d)) + ((e + f) + (g + h))
            for k in range(x.size - x.size % 8, x.size):
                total += x[k] * y[k]
            found[i, j] = total


_ACROSS = 256
_DEEP = 64
"""Columns and rows of the piece of the right matrix that stays in a processor's cache."""


@exact("void(float64[:, ::1], float64[:, ::1], float64[:, ::1], int64, int64, int64)")
def add_product(left: Any, right: Any, sums: Any, first: Any, last: Any, column: Any) -> None:
    """sums += left @ right, float64, for the rows `first` to `last` and the columns from `column` on.

    Each element takes its terms in their order, one after the other; several elements are done at once.
    """
    depth, columns = right.shape
    for across in range(column, columns, _ACROSS):
        end = min(across + _ACROSS, columns)
        for deep in range(0, depth, _DEEP):
            deepest = min(deep + _DEEP, depth)
            whole = deepest - (deepest - deep) % 4
            for i in range(first, last):
                row = sums[i, across:end]
                for k in range(deep, whole, 4):
                    a, b, c, d = left[i, k], left[i, k + 1], left[i, k + 2], left[i, k + 3]
                    first_row, second = right[k, across:end], right[k + 1, across:end]
                    third, fourth = right[k + 2, across:end], right[k + 3, across:end]
                    for j in range(row.size):
                        row[j] = (((row[j] + a * first_row[j]) + b * second[j]) + c * third[j]) + d * fourth[j]
                for k in range(whole, deepest):
                    a, first_row = left[i, k], right[k, across:end]
                    for j in range(row.size):
                        row[j] += a * first_row[j]
