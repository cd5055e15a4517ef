"""Accumulating the moments of wide dtypes, and selecting their order statistics.

Moments are accumulated block by block, each about its own mean, and merged: Pébay, "Formulas for robust, one-pass
parallel computation of covariances and arbitrary-order statistical moments" (SAND2008-6212, 2008). A mean is kept as
the sum of two floats, so that elements which agree in all but their last bits still have the right deviation.
"""

from __future__ import annotations

import numba
import numpy as np

from planner.machine_code import ANY_ORDER, compiled

__all__ = ["BLOCK", "MOMENTS", "TALLIES", "count_digits", "merge_moments", "tally_wide"]

MOMENTS = 6
"""An accumulator of moments: n, the mean's high and low part, Σd², Σd³ and Σd⁴ about the mean."""
TALLIES = 6
"""Counts of zeros, negative zeros, subnormals, NaN, infinities, negative infinities."""
BLOCK = 4096
"""Elements whose moments are taken at once: the first cache holds them."""


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


@numba.njit
def _merge(into, n, high, low, m2, m3, m4):
    if n == 0:
        return
    if into[0] == 0:
        into[0], into[1], into[2], into[3], into[4], into[5] = n, high, low, m2, m3, m4
        return
    a, total = into[0], into[0] + n
    delta = (high - into[1]) + (low - into[2])
    step = delta * (n / total)
    p, q = a / total, n / total
    d2 = delta * delta
    fourth = m4 + d2 * d2 * a * q * (p * p - p * q + q * q)
    into[5] += fourth + 6 * d2 * (p * p * m2 + q * q * into[3]) + 4 * delta * (p * m3 - q * into[4])
    into[4] += m3 + d2 * delta * a * q * (p - q) + 3 * delta * (p * m2 - q * into[3])
    into[3] += m2 + d2 * a * q
    # The mean moves by `step`; what rounding takes from the high part goes to the low one (Knuth's two-sum).
    moved = into[1] + step
    back = moved - into[1]
    lost = (into[1] - (moved - back)) + (step - back)
    into[0], into[1], into[2] = total, moved, into[2] + lost


@compiled("void(float64[:], float64[:])")
def merge_moments(into, other):
    """Add the moments of other elements to `into`; both [MOMENTS]."""
    _merge(into, other[0], other[1], other[2], other[3], other[4], other[5])


@numba.njit(inline="always")
def _finite_moments(values, unit, moments):
    """Merge the moments of a block of finite values, divided by the power of two whose inverse is `unit`."""
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i]) * unit
    mean = total / values.size
    drift, m2, m3, m4 = 0.0, 0.0, 0.0, 0.0
    for i in range(values.size):
        d = np.float64(values[i]) * unit - mean
        square = d * d
        drift += d
        m2 += square
        m3 += square * d
        m4 += square * square
    # What rounding left of Σd moves the moments from the rounded mean to the true one.
    n = np.float64(values.size)
    low = drift / n
    m4 += low * (low * (6 * m2 - 3 * low * drift) - 4 * m3)
    m3 += low * (2 * low * drift - 3 * m2)
    m2 = max(m2 - low * drift, 0.0)
    _merge(moments, n, mean, low, m2, m3, m4)


_WIDE = (
    "void({bits}[::1], {value}[::1], int64, int64, int64, float64, {value}, {value}[::1], float64[:], float64[:],"
    " int64[:], uint32[:,::1], float64[::1], float64[::1], float64[:], int64[:], int64[:])"
)


@compiled(
    _WIDE.format(bits="uint32", value="float32"), _WIDE.format(bits="uint64", value="float64"), fastmath=ANY_ORDER
)
def tally_wide(
    bits, data, shift, first, columns, unit, normal, spare, moments, extremes, tallies, counts, rows, cols, keys,
    patterns, places,
):  # fmt: skip
    """Accumulate moments, extremes and counts of odd elements; count the upper 16 bits; the rest as `tally_halves`.

    `bits` and `data` are the same bytes as integers and as floats; `bits >> shift` are the upper 16; `unit` is a power
    of two by which values are multiplied on their way into sums; `normal` is the smallest normal magnitude; `spare`:
    [4096], overwritten; `keys` are magnitudes.
    """
    least = keys.min()
    row, column = 0, 0
    if columns:
        column = first % columns
    for at in range(0, data.size, BLOCK):
        block, raw = data[at : at + BLOCK], bits[at : at + BLOCK]
        low, high, small = np.inf, -np.inf, 0
        finite = True
        for i in range(block.size):
            value = np.float64(block[i])
            finite &= abs(value) < np.inf
            low = min(low, value)
            high = max(high, value)
            small += np.int64(abs(block[i]) < normal)
        chosen = block
        if not finite:
            kept = 0
            low, high = np.inf, -np.inf
            for i in range(block.size):
                value = np.float64(block[i])
                if abs(value) < np.inf:
                    spare[kept] = block[i]
                    kept += 1
                    low, high = min(low, value), max(high, value)
                elif value != value:
                    tallies[3] += 1
                else:
                    tallies[4] += 1
                    tallies[5] += np.int64(value < 0)
            chosen = spare[:kept]
        if chosen.size:
            _finite_moments(chosen, unit, moments)
            extremes[0], extremes[1] = min(extremes[0], low), max(extremes[1], high)
            if max(-low, high) > least:
                for i in range(block.size):
                    key = abs(np.float64(block[i]))
                    if least < key < np.inf:
                        least = _keep(keys, patterns, places, key, np.int64(raw[i]), first + at + i)
        if small:
            zeros = 0
            for i in range(block.size):
                zeros += np.int64(block[i] == 0)
                tallies[1] += np.int64(block[i] == 0 and raw[i] != 0)
            tallies[0] += zeros
            tallies[2] += small - zeros
        for i in range(block.size):
            counts[i & 1, raw[i] >> shift] += np.uint32(1)
        done = 0
        while columns and done < block.size:
            end = min(done + columns - column, block.size)
            total = 0.0
            part, over = block[done:end], cols[column : column + end - done]
            if finite:
                for i in range(part.size):
                    value = np.float64(part[i]) * unit
                    total += value * value
                    over[i] += value * value
            else:
                for i in range(part.size):
                    value = np.float64(part[i]) * unit
                    if abs(value) < np.inf:
                        total += value * value
                        over[i] += value * value
            rows[row] += total
            column += end - done
            done = end
            if column == columns:
                row, column = row + 1, 0


@compiled(
    "void(uint32[::1], float32[::1], int64, int64, uint8[::1], uint64[::1], int64[:,::1], float64, float64,"
    " float64[::1], int64[::1])",
    "void(uint64[::1], float64[::1], int64, int64, uint8[::1], uint64[::1], int64[:,::1], float64, float64,"
    " float64[::1], int64[::1])",
    fastmath=ANY_ORDER,
)
def count_digits(bits, data, width, shift, gate, prefixes, counts, mean, unit, distances, beyond):
    """Count the 16-bit digit at `shift` of the ordered keys that begin with one of `prefixes`.

    An ordered key is a pattern of `width` bits made to grow with the value (all bits flipped if negative, else the
    sign alone). `gate`: [65536], by the key's upper 16 bits: whether any prefix begins so; `counts`: [prefixes, 65536].
    Also counts into `beyond` the finite elements with |x·unit - mean| > `distances`, where those are given.
    """
    top = np.uint64(width - 16)
    sign = np.uint64(1) << np.uint64(width - 1)
    everything = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - width)
    above, here = np.uint64(shift + 16), np.uint64(shift)
    for at in range(0, data.size, BLOCK):
        block, raw = data[at : at + BLOCK], bits[at : at + BLOCK]
        for order in range(distances.size):
            distance, found = distances[order], 0
            for i in range(block.size):
                away = abs(np.float64(block[i]) * unit - mean)
                found += np.int64(distance < away < np.inf)
            beyond[order] += found
        for i in range(block.size):
            pattern = np.uint64(raw[i])
            key = pattern ^ (everything if pattern & sign else sign)
            if gate[key >> top] and abs(block[i]) < np.inf:
                prefix = key >> above
                for slot in range(prefixes.size):
                    if prefixes[slot] == prefix:
                        counts[slot, (key >> here) & np.uint64(0xFFFF)] += 1
