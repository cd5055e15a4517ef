"""Counting the patterns of narrow dtypes."""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from planner.machine_code import ANY_ORDER, compiled

__all__ = ["fold_counts", "tally_halves", "tally_table"]

BLOCK = 8192  # elements of a vector that are looked at at once: the first cache holds them


@numba.njit
def _keep(keys, patterns, places, key, pattern, place):
    """Put an element among the largest, in place of the smallest of them; returns the smallest key then kept.

    Of equal elements the one with the lowest place stays, whatever order they come in.
    """
    least = 0
    for slot in range(1, keys.size):
        if keys[slot] < keys[least] or (keys[slot] == keys[least] and places[slot] > places[least]):
            least = slot
    if key > keys[least] or (key == keys[least] and place < places[least]):
        keys[least] = key
        patterns[least] = pattern
        places[least] = place
    return keys.min()


@intrinsic
def _float32_of_bits(_typing, _bits):
    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.types.float32(numba.types.uint32), generate


@numba.njit(inline="always")
def _square(pattern, shift):
    """The square of a finite half, its bits moved to their place in a float32."""
    bits = np.uint32(np.uint32(pattern & np.uint16(0x7FFF)) << np.uint32(shift))
    value = np.float64(_float32_of_bits(bits))
    return value * value


@numba.njit(inline="always")
def _largest_halves(piece, first, limit, keys, patterns, places, least):
    """Keep the largest finite ones of a piece; most pieces are passed over by their peak alone."""
    peak = np.uint16(0)
    for i in range(piece.size):
        peak = max(peak, piece[i] & np.uint16(0x7FFF))
    if peak > least:
        for i in range(piece.size):
            key = np.int64(piece[i] & np.uint16(0x7FFF))
            if least < key < limit:
                least = _keep(keys, patterns, places, key, np.int64(piece[i]), first + i)
    return least, peak < limit


@numba.njit(inline="always")
def _count(piece, counts):
    """Neighbours go to different tables, so that a run of equal elements does not wait for its own last increment."""
    even = piece.size & ~1
    for i in range(0, even, 2):
        counts[0, piece[i]] += np.uint32(1)
        counts[1, piece[i + 1]] += np.uint32(1)
    if even < piece.size:
        counts[0, piece[even]] += np.uint32(1)


@compiled(
    "void(uint16[::1], int64, int64, int64, int64, uint32[:,::1], float64[::1], float64[::1], int64[:], int64[:],"
    " int64[:])",
    fastmath=ANY_ORDER,
)
def tally_halves(data, shift, limit, first, columns, counts, rows, cols, keys, patterns, places):
    """Count bfloat16 or float16 elements; sum squares by row and column; keep the largest.

    `data`: patterns; `shift`: from the pattern to a float32's bits; `limit`: the pattern of infinity; `counts`: [2,
    65536]; `rows`: one sum for each row that the piece touches; `cols`: [columns]. The sums are of the squares of the
    float32 numbers got by the shift. `keys` (magnitudes as patterns), `patterns` and `places` are those of the largest.
    """
    least = keys.min()
    at = 0
    while at < data.size:
        if columns == 0:
            piece = data[at : at + BLOCK]
            least, _ = _largest_halves(piece, first + at, limit, keys, patterns, places, least)
        else:
            column = (first + at) % columns
            row = (first + at) // columns - first // columns
            if column == 0 and data.size - at >= 4 * columns:
                piece = data[at : at + 4 * columns]
                least, finite = _largest_halves(piece, first + at, limit, keys, patterns, places, least)
                if finite:
                    # Four rows at a time: the sums of the columns are then fetched and stored a quarter as often.
                    r0, r1, r2, r3 = 0.0, 0.0, 0.0, 0.0
                    a, b = piece[:columns], piece[columns : 2 * columns]
                    c, d = piece[2 * columns : 3 * columns], piece[3 * columns :]
                    for i in range(columns):
                        s0, s1 = _square(a[i], shift), _square(b[i], shift)
                        s2, s3 = _square(c[i], shift), _square(d[i], shift)
                        r0 += s0
                        r1 += s1
                        r2 += s2
                        r3 += s3
                        cols[i] += (s0 + s1) + (s2 + s3)
                    rows[row] += r0
                    rows[row + 1] += r1
                    rows[row + 2] += r2
                    rows[row + 3] += r3
                else:
                    for i in range(piece.size):
                        if piece[i] & np.uint16(0x7FFF) < limit:
                            square = _square(piece[i], shift)
                            rows[row + i // columns] += square
                            cols[i % columns] += square
            else:
                piece = data[at : at + min(columns - column, data.size - at)]
                least, finite = _largest_halves(piece, first + at, limit, keys, patterns, places, least)
                total, over = 0.0, cols[column : column + piece.size]
                if finite:
                    for i in range(piece.size):
                        square = _square(piece[i], shift)
                        total += square
                        over[i] += square
                else:
                    for i in range(piece.size):
                        if piece[i] & np.uint16(0x7FFF) < limit:
                            total += _square(piece[i], shift)
                            over[i] += _square(piece[i], shift)
                rows[row] += total
        _count(piece, counts)
        at += piece.size


@compiled(
    "void(uint8[::1], float64[::1], int64[::1], int64, int64, uint32[:,::1], float64[::1], float64[::1], int64[:],"
    " int64[:], int64[:])",
    "void(uint16[::1], float64[::1], int64[::1], int64, int64, uint32[:,::1], float64[::1], float64[::1], int64[:],"
    " int64[:], int64[:])",
)
def tally_table(data, squares, magnitudes, first, columns, counts, rows, cols, keys, patterns, places):
    """As `tally_halves`, for any other narrow dtype, whose values are looked up.

    `squares`: of the value of each pattern, 0 where it is not finite; `magnitudes`: integers in the order of the
    magnitudes, 0 for what is zero or not finite.
    """
    least = keys.min()
    row, column = 0, 0
    if columns:
        column = first % columns
    for i in range(data.size):
        pattern = data[i]
        counts[i & 1, pattern] += np.uint32(1)
        key = magnitudes[pattern]
        if key > least:
            least = _keep(keys, patterns, places, key, np.int64(pattern), first + i)
        if columns:
            rows[row] += squares[pattern]
            cols[column] += squares[pattern]
            column += 1
            if column == columns:
                row, column = row + 1, 0


@compiled("void(uint32[:,::1], int64[::1])")
def fold_counts(counts, total):
    """Add both tables to `total`, and empty them."""
    for i in range(total.size):
        total[i] += np.int64(counts[0, i]) + np.int64(counts[1, i])
        counts[0, i] = 0
        counts[1, i] = 0
