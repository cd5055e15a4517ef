"""Eigenvectors of a symmetric matrix, with the same bits on every machine.

LAPACK's depend on the processor, on the number of threads and on who built it. Here Householder reflections make the
matrix tridiagonal and implicit QL steps with Wilkinson's shift make that diagonal (Golub and Van Loan, Matrix
Computations, 4th edition, sections 8.3.1 and 8.3.5), in float64, by additions, multiplications, divisions and square
roots alone, each in its written order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.machine_code import exact

__all__ = ["eigenvectors"]

Float64 = NDArray[np.float64]
_STRIP = 64
"""Columns that are turned together: a strip of them stays in a processor's cache."""
_SWEEPS = 48
"""QL steps whose turns are kept before they are applied."""


def eigenvectors(matrix: Float64) -> Float64:
    """Orthonormal eigenvectors of a symmetric [n, n] of moderate numbers, as rows, by falling eigenvalue.

    `matrix` is used up. Errors are a few roundings of its largest eigenvalue. Memory: twice the matrix more. Raises
    ValueError where the iteration does not converge.
    """
    size = len(matrix)
    diagonal, beside, scales = np.zeros(size), np.zeros(size), np.zeros(size)
    _tridiagonal(matrix, diagonal, beside, scales, np.zeros((4, size)))
    basis = np.eye(size)
    for strip in range(0, size, _STRIP):
        _reflected(basis, matrix, scales, strip, min(strip + _STRIP, size))
    rows = np.ascontiguousarray(basis.T)
    del basis
    bound = 2.0**-60 * float(max(np.abs(diagonal).max(initial=0), np.abs(beside).max(initial=0)))
    turns, spans = np.zeros((_SWEEPS, 2, size)), np.zeros((_SWEEPS, 2), dtype=np.int64)
    place = np.zeros(2, dtype=np.int64)
    while place[0] < size:
        count = _ql_steps(diagonal, beside, bound, turns, spans, place)
        if count < 0:
            raise ValueError("the singular values were not found: the iteration did not converge")
        for strip in range(0, size, _STRIP):
            _turned(rows, turns, spans, count, strip, min(strip + _STRIP, size))
    return np.ascontiguousarray(rows[np.argsort(-diagonal, kind="stable")])


@exact("void(float64[:, ::1], float64[::1], float64[::1], float64[::1], float64[:, ::1])")
def _tridiagonal(a: Any, diagonal: Any, beside: Any, scales: Any, work: Any) -> None:
    """H·a·H = T with H = H₀·H₁···, H_k = 1 - scales[k]·v·vᵀ; v lies in a[k, k+1:] afterwards.

    The rank-two change of one step is made in the pass that multiplies by the vector of the next.
    """
    n = a.shape[0]
    for k in range(n):
        old, change = work[0, k:], work[1, k:]  # of the step before: a -= old·changeᵀ + change·oldᵀ
        row = a[k, k:]
        x, y = old[0], change[0]
        for j in range(row.size):
            row[j] -= x * change[j] + y * old[j]
        diagonal[k] = row[0]
        if k == n - 1:
            break
        vector = a[k, k + 1 :]
        rest = 0.0
        for j in range(1, vector.size):
            rest += vector[j] * vector[j]
        new, product = work[2, k + 1 :], work[3, k + 1 :]
        for j in range(new.size):
            new[j] = 0.0
            product[j] = 0.0
        if rest == 0.0:
            beside[k] = vector[0]
        else:
            length = np.sqrt(vector[0] * vector[0] + rest)
            beside[k] = -length if vector[0] > 0.0 else length
            vector[0] -= beside[k]
            scales[k] = 2.0 / (vector[0] * vector[0] + rest)
            for j in range(new.size):
                new[j] = vector[j]
        old, change = work[0, k + 1 :], work[1, k + 1 :]
        for i in range(new.size):
            row = a[k + 1 + i, k + 1 :]
            x, y, z = old[i], change[i], new[i]
            for j in range(row.size):
                value = row[j] - (x * change[j] + y * old[j])
                row[j] = value
                product[j] += z * value
        along = 0.0
        for j in range(new.size):
            product[j] *= scales[k]
            along += product[j] * new[j]
        along *= 0.5 * scales[k]
        for j in range(new.size):
            old[j] = new[j]
            change[j] = product[j] - along * new[j]


@exact("void(float64[:, ::1], float64[:, ::1], float64[::1], int64, int64)")
def _reflected(basis: Any, vectors: Any, scales: Any, first: Any, last: Any) -> None:
    """The columns `first` to `last` of H₀·H₁···basis, with what `_tridiagonal` left."""
    n = basis.shape[0]
    product = np.zeros(last - first)
    for back in range(n - 1):
        k = n - 2 - back
        if scales[k] == 0.0:
            continue
        for j in range(product.size):
            product[j] = 0.0
        for i in range(k + 1, n):
            row, x = basis[i, first:last], vectors[k, i]
            for j in range(product.size):
                product[j] += x * row[j]
        for i in range(k + 1, n):
            row, x = basis[i, first:last], scales[k] * vectors[k, i]
            for j in range(product.size):
                row[j] -= x * product[j]


@exact("int64(float64[::1], float64[::1], float64, float64[:, :, ::1], int64[:, ::1], int64[::1])")
def _ql_steps(diagonal: Any, beside: Any, bound: Any, turns: Any, spans: Any, place: Any) -> Any:
    """As many QL steps as `turns` has room for, or are needed; returns how many, -1 where too many were.

    place is the eigenvalue sought, and how many steps it took so far. The turn of the rows i and i + 1 in step s has
    the cosine turns[s, 0, i] and the sine turns[s, 1, i]; i falls from spans[s, 1] to spans[s, 0].
    """
    n = diagonal.size
    count = 0
    while place[0] < n:
        low = place[0]
        high = low
        while high < n - 1:
            near = abs(diagonal[high]) + abs(diagonal[high + 1])
            if abs(beside[high]) <= 2.0**-53 * near + bound:
                break
            high += 1
        if high == low:
            place[0] += 1
            place[1] = 0
            continue
        if count == turns.shape[0]:
            return count
        place[1] += 1
        if place[1] > 100:
            return -1
        shift = (diagonal[low + 1] - diagonal[low]) / (2.0 * beside[low])
        length = np.sqrt(shift * shift + 1.0)
        shift = diagonal[high] - diagonal[low] + beside[low] / (shift + (length if shift >= 0.0 else -length))
        sine = cosine = 1.0
        moved = 0.0
        end = low
        beside[high] = 0.0
        for back in range(high - low):
            i = high - 1 - back
            f, b = sine * beside[i], cosine * beside[i]
            length = np.sqrt(f * f + shift * shift)
            beside[i + 1] = length
            if length == 0.0:  # the matrix falls apart here
                diagonal[i + 1] -= moved
                end = i + 1
                break
            sine, cosine = f / length, shift / length
            shift = diagonal[i + 1] - moved
            length = (diagonal[i] - shift) * sine + 2.0 * cosine * b
            moved = sine * length
            diagonal[i + 1] = shift + moved
            shift = cosine * length - b
            turns[count, 0, i], turns[count, 1, i] = cosine, sine
        if end == low:
            diagonal[low] -= moved
            beside[low] = shift
        beside[high] = 0.0
        spans[count, 0], spans[count, 1] = end, high - 1
        count += 1
    return count


@exact("void(float64[:, ::1], float64[:, :, ::1], int64[:, ::1], int64, int64, int64)")
def _turned(rows: Any, turns: Any, spans: Any, count: Any, first: Any, last: Any) -> None:
    """The columns `first` to `last` of the rows, turned as `_ql_steps` says."""
    for step in range(count):
        for back in range(spans[step, 1] - spans[step, 0] + 1):
            i = spans[step, 1] - back
            cosine, sine = turns[step, 0, i], turns[step, 1, i]
            upper, lower = rows[i, first:last], rows[i + 1, first:last]
            for j in range(upper.size):
                x, y = upper[j], lower[j]
                lower[j] = sine * x + cosine * y
                upper[j] = cosine * x - sine * y
