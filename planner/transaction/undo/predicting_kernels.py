"""The loops over the elements of a predicted piece: sums to fit with, predictions, rounding, differences.

`frames` says what they are for. What a decoder runs uses only integers and the sums, products and quotients of IEEE 754
in float64, one after the other in the order of the text: no option lets the compiler fuse or reorder them. The product
of two numbers of 24 bits is exact in float64, so that even a machine that fused would get the same for every dtype but
F64. Each loop releases the GIL and is known on disk by this file alone, so nothing here calls another file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.machine_code import compiled

__all__ = [
    "add_products",
    "apply_columns",
    "apply_rows",
    "column_sums",
    "differences",
    "factor_limits",
    "gather",
    "restore",
    "round_16",
    "row_sums",
    "scatter",
    "widen_16",
]

_DIVIDES = {"error_model": "numpy"}  # by zero gives infinity or NaN, as in IEEE 754, and no exception
_SCALE, _DIVIDE = 0, 1  # the third kind, affine, is what is left


@compiled("void(uint16[::1], float32[::1], float64[::1])")
def widen_16(patterns: Any, table: Any, values: Any) -> None:
    """Write the value of each pattern, from the table of all of them."""
    for i in range(patterns.size):
        values[i] = table[patterns[i]]


@compiled("void(uint32[::1], uint16[::1], boolean)")
def round_16(singles: Any, patterns: Any, half: Any) -> None:
    """Round float32 bits to the nearest F16 (`half`) or BF16, ties to even; NaN becomes the quiet one of its sign."""
    for i in range(singles.size):
        bits = singles[i]
        sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
        size = bits & np.uint32(0x7FFFFFFF)
        if half:
            if size >= np.uint32(0x47800000):  # 2^16 and beyond
                near = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else np.uint32(0x7C00)
            elif size >= np.uint32(0x38800000):  # 2^-14: a normal number; a carry into infinity is right
                near = (size - np.uint32(0x38000000) + np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1))) >> (
                    np.uint32(13)
                )
            else:
                shift = np.uint32(126) - (size >> np.uint32(23))  # 14 and more; the unit is 2^-24
                digits = (size & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
                shift = min(shift, np.uint32(25))  # beyond, nothing is left; float32's own subnormals are beyond too
                tie = (digits >> shift) & np.uint32(1)
                near = (digits + (np.uint32(1) << (shift - np.uint32(1))) - np.uint32(1) + tie) >> shift
        else:
            near = np.uint32(0x7FC0)
            if size <= np.uint32(0x7F800000):
                near = (size + np.uint32(0x7FFF) + ((size >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        patterns[i] = sign | near


@compiled("void(float64[::1], int64, int64, int64, float64[::1], float64[::1])", **_DIVIDES)
def apply_rows(values: Any, column: Any, length: Any, kind: Any, factors: Any, offsets: Any) -> None:
    """Predict each row of `length` from its own parameters; the first begins at `column`."""
    begin, row = 0, 0
    end = min(length - column, values.size)
    while begin < values.size:
        factor, offset = factors[row], offsets[row]
        if kind == _SCALE:
            for i in range(begin, end):
                values[i] = factor * values[i]
        elif kind == _DIVIDE:
            for i in range(begin, end):
                values[i] = values[i] / factor
        else:
            for i in range(begin, end):
                values[i] = factor * values[i] + offset
        begin, row = end, row + 1
        end = min(begin + length, values.size)


@compiled("void(float64[::1], int64, int64, int64, float64[::1], float64[::1])", **_DIVIDES)
def apply_columns(values: Any, column: Any, length: Any, kind: Any, factors: Any, offsets: Any) -> None:
    """Predict each element from the parameters of its column; the first element is in `column`."""
    begin = 0
    while begin < values.size:
        count = min(length - column, values.size - begin)
        if kind == _SCALE:
            for i in range(count):
                values[begin + i] = factors[column + i] * values[begin + i]
        elif kind == _DIVIDE:
            for i in range(count):
                values[begin + i] = values[begin + i] / factors[column + i]
        else:
            for i in range(count):
                values[begin + i] = factors[column + i] * values[begin + i] + offsets[column + i]
        begin, column = begin + count, 0


@compiled("void(float64[::1], int64, int64, float64[:, ::1], float64[:, ::1])")
def add_products(values: Any, column: Any, length: Any, left: Any, right: Any) -> None:
    """Add the outer products of left[k] (one number a row) and right[k] (one a column), k after k."""
    begin, row = 0, 0
    while begin < values.size:
        count = min(length - column, values.size - begin)
        done = 0
        while done + 4 <= left.shape[0]:  # four at a time, so that the sums stay in registers; the order is the same
            a, b, c, d = left[done, row], left[done + 1, row], left[done + 2, row], left[done + 3, row]
            for i in range(count):
                value = values[begin + i] + a * right[done, column + i]
                value = value + b * right[done + 1, column + i]
                value = value + c * right[done + 2, column + i]
                values[begin + i] = value + d * right[done + 3, column + i]
            done += 4
        for k in range(done, left.shape[0]):
            factor = left[k, row]
            for i in range(count):
                values[begin + i] = values[begin + i] + factor * right[k, column + i]
        begin, row, column = begin + count, row + 1, 0


@compiled("void(float64[::1], float64[::1], int64, int64, float64[:, ::1])")
def row_sums(given: Any, wanted: Any, column: Any, length: Any, sums: Any) -> None:
    """Write for each row: how many, the sums of g and w, of g², gw and w². Pairs that are not finite are left out."""
    begin, row = 0, 0
    end = min(length - column, given.size)
    while begin < given.size:
        count = g1 = w1 = gg = gw = ww = 0.0
        for i in range(begin, end):
            g, w = given[i], wanted[i]
            if np.isfinite(g) and np.isfinite(w):
                count += 1.0
                g1 += g
                w1 += w
                gg += g * g
                gw += g * w
                ww += w * w
        sums[0, row], sums[1, row], sums[2, row] = count, g1, w1
        sums[3, row], sums[4, row], sums[5, row] = gg, gw, ww
        begin, row = end, row + 1
        end = min(begin + length, given.size)


@compiled("void(float64[::1], float64[::1], int64, int64, float64[:, ::1])")
def column_sums(given: Any, wanted: Any, column: Any, length: Any, sums: Any) -> None:
    """Add for each column what `row_sums` writes for each row."""
    begin = 0
    while begin < given.size:
        count = min(length - column, given.size - begin)
        for i in range(count):
            g, w = given[begin + i], wanted[begin + i]
            if np.isfinite(g) and np.isfinite(w):
                sums[0, column + i] += 1.0
                sums[1, column + i] += g
                sums[2, column + i] += w
                sums[3, column + i] += g * g
                sums[4, column + i] += g * w
                sums[5, column + i] += w * w
        begin, column = begin + count, 0


@compiled(
    "void(float64[::1], float64[::1], float64[::1], int64, int64, boolean, float64[::1], float64[::1])", **_DIVIDES
)
def factor_limits(
    given: Any, wanted: Any, halves: Any, column: Any, length: Any, rows: Any, lows: Any, highs: Any
) -> None:
    """Narrow [low, high] of each row (`rows`) or column to the factors that round given to wanted.

    `halves` is half a unit of the last digit of each wanted value, infinite where that is no limit.
    """
    begin, row = 0, 0
    while begin < given.size:
        count = min(length - column, given.size - begin)
        if rows:
            low, high = lows[row], highs[row]
            for i in range(begin, begin + count):
                g, w = given[i], wanted[i]
                size = w if g > 0.0 else -w
                g = abs(g)
                low = max(low, (size - halves[i]) / g)  # 0 / 0 is NaN, and changes nothing
                high = min(high, (size + halves[i]) / g)
            lows[row], highs[row] = low, high
        else:
            for i in range(count):
                g, w = given[begin + i], wanted[begin + i]
                size = w if g > 0.0 else -w
                g = abs(g)
                lows[column + i] = max(lows[column + i], (size - halves[begin + i]) / g)
                highs[column + i] = min(highs[column + i], (size + halves[begin + i]) / g)
        begin, row, column = begin + count, row + 1, 0


@compiled(
    "int64(uint8[::1], uint8[::1], uint8[::1], uint8, uint8[::1])",
    "int64(uint16[::1], uint16[::1], uint16[::1], uint16, uint16[::1])",
    "int64(uint32[::1], uint32[::1], uint32[::1], uint32, uint32[::1])",
    "int64(uint64[::1], uint64[::1], uint64[::1], uint64, uint64[::1])",
)
def differences(wanted: Any, predicted: Any, given: Any, infinity: Any, found: Any) -> Any:
    """Write how far each wanted pattern is from the predicted one, in zigzag; returns how many are not 0.

    `infinity` is the pattern of it, or 0 for patterns that are no floats: those are subtracted as they are, floats by
    their place in the order of values. A predicted NaN gives way to the given pattern.
    """
    zero = wanted.dtype.type(0)
    one = wanted.dtype.type(1)
    top = wanted.dtype.type(8 * wanted.itemsize - 1)
    sign = one << top
    count = 0
    for i in range(wanted.size):
        p, w = predicted[i], wanted[i]
        if infinity != zero:
            p = given[i] if (p & ~sign) > infinity else p
            p = p ^ ((zero - (p >> top)) | sign)
            w = w ^ ((zero - (w >> top)) | sign)
        d = wanted.dtype.type(w - p)
        d = wanted.dtype.type(wanted.dtype.type(d << one) ^ wanted.dtype.type(zero - wanted.dtype.type(d >> top)))
        found[i] = d
        count += d != zero
    return count


@compiled(
    "void(uint8[::1], uint8[::1], uint8[::1], uint8, uint8[::1])",
    "void(uint16[::1], uint16[::1], uint16[::1], uint16, uint16[::1])",
    "void(uint32[::1], uint32[::1], uint32[::1], uint32, uint32[::1])",
    "void(uint64[::1], uint64[::1], uint64[::1], uint64, uint64[::1])",
)
def restore(found: Any, predicted: Any, given: Any, infinity: Any, wanted: Any) -> None:
    """Write the wanted patterns: the way back from `differences`."""
    zero = wanted.dtype.type(0)
    one = wanted.dtype.type(1)
    top = wanted.dtype.type(8 * wanted.itemsize - 1)
    sign = one << top
    for i in range(wanted.size):
        p, d = predicted[i], found[i]
        d = wanted.dtype.type((d >> one) ^ wanted.dtype.type(zero - (d & one)))
        if infinity != zero:
            p = given[i] if (p & ~sign) > infinity else p
            p = p ^ ((zero - (p >> top)) | sign)
            w = wanted.dtype.type(p + d)
            wanted[i] = w ^ (((w >> top) - one) | sign)
        else:
            wanted[i] = p + d


@compiled(
    "int64(uint8[::1], uint8[::1], uint8[::1])",
    "int64(uint16[::1], uint8[::1], uint16[::1])",
    "int64(uint32[::1], uint8[::1], uint32[::1])",
    "int64(uint64[::1], uint8[::1], uint64[::1])",
)
def gather(found: Any, gaps: Any, values: Any) -> Any:
    """Write what is not 0, less one, and before each how many zeros there are; returns the bytes of the latter.

    A byte of 255 says 255 zeros and goes on. `values` has room for one more than there are.
    """
    zero = found.dtype.type(0)
    one = found.dtype.type(1)
    count = size = 0
    before = -1
    for i in range(found.size):
        values[count] = found[i] - one
        if found[i] != zero:
            gap = i - before - 1
            while gap >= 255:
                gaps[size] = 255
                size += 1
                gap -= 255
            gaps[size] = gap
            size += 1
            count += 1
            before = i
    return size


@compiled(
    "boolean(uint8[::1], uint8[::1], uint8[::1])",
    "boolean(uint8[::1], uint16[::1], uint16[::1])",
    "boolean(uint8[::1], uint32[::1], uint32[::1])",
    "boolean(uint8[::1], uint64[::1], uint64[::1])",
)
def scatter(gaps: Any, values: Any, found: Any) -> Any:
    """Write the way back from `gather`, over zeros; returns whether the gaps are those of so many values."""
    one = found.dtype.type(1)
    place = np.int64(0)
    count = 0
    for size in range(gaps.size):
        gap = gaps[size]
        place += gap
        if gap != 255:
            if count >= values.size or place >= found.size:
                return False
            found[place] = values[count] + one
            count += 1
            place += 1
    return count == values.size
