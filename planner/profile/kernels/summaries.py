"""From counts of values, and from sums of squares, to the numbers of a profile."""

from __future__ import annotations

import math

import numba

from planner.machine_code import compiled

__all__ = ["compress_counts", "moments_of_counts", "runs_of", "summarise_norms"]


@compiled("int64(int64[::1], int32[::1], float64[::1], float64[::1], int64[::1])")
def compress_counts(counts, ascending, values, found, occurrences):
    """The values that occur and how often, in ascending order, the two zeros as one; returns how many there are.

    `ascending`: the patterns of the finite values in their order; `values`: these values.
    """
    size = 0
    for i in range(ascending.size):
        count = counts[ascending[i]]
        if count:
            if size and found[size - 1] == values[i]:
                occurrences[size - 1] += count
            else:
                found[size] = values[i]
                occurrences[size] = count
                size += 1
    return size


@numba.njit(inline="always")
def _add(total, lost, term):
    """A sum and what rounding has taken from it so far, after one more term (Neumaier, 1974)."""
    after = total + term
    if abs(total) >= abs(term):
        lost += (total - after) + term
    else:
        lost += (term - after) + total
    return after, lost


@compiled("float64(float64[::1], int64[::1], float64[::1])")
def moments_of_counts(values, counts, moments):
    """Moments of `values`, each occurring `counts` times, into `moments`; returns the entropy in bits.

    Sums are compensated, so that their error does not grow with the number of values.
    """
    n, entropy, total, lost = 0, 0.0, 0.0, 0.0
    for i in range(values.size):
        n += counts[i]
        total, lost = _add(total, lost, values[i] * counts[i])
    mean = (total + lost) / n
    drift, drift_lost, m2, m2_lost, m3, m3_lost, m4, m4_lost = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(values.size):
        d = values[i] - mean
        weight = d * counts[i]
        drift, drift_lost = _add(drift, drift_lost, weight)
        m2, m2_lost = _add(m2, m2_lost, weight * d)
        m3, m3_lost = _add(m3, m3_lost, weight * d * d)
        m4, m4_lost = _add(m4, m4_lost, weight * d * d * d)
        share = counts[i] / n
        entropy -= share * math.log2(share)
    drift, m2, m3, m4 = drift + drift_lost, m2 + m2_lost, m3 + m3_lost, m4 + m4_lost
    low = drift / n
    m4 += low * (low * (6 * m2 - 3 * low * drift) - 4 * m3)
    m3 += low * (2 * low * drift - 3 * m2)
    m2 = max(m2 - low * drift, 0.0)
    moments[0], moments[1], moments[2], moments[3], moments[4], moments[5] = n, mean, low, m2, m3, m4
    return entropy


@compiled("void(uint32[::1], float64[::1])", "void(uint64[::1], float64[::1])")
def runs_of(ascending, out):
    """Into `out`: how many different values there are in ascending order, and their entropy in bits."""
    distinct, entropy, since = 0, 0.0, 0
    for i in range(1, ascending.size + 1):
        if i == ascending.size or ascending[i] != ascending[since]:
            share = (i - since) / ascending.size
            entropy -= share * math.log2(share)
            distinct += 1
            since = i
    out[0], out[1] = distinct, entropy


@compiled("void(float64[::1], float64[::1], int64[::1], int64[::1])")
def summarise_norms(squares, out, smallest, largest):
    """Turn sums of squares into norms, in place, and summarise them.

    `out`: smallest, largest, mean, population standard deviation; `smallest` and `largest`: the places of the extreme
    norms, of equal ones the lowest places; filled with -1 where there are fewer.
    """
    total = 0.0
    smallest[:] = -1
    largest[:] = -1
    for i in range(squares.size):
        norm = math.sqrt(squares[i])
        squares[i] = norm
        total += norm
        at, here = i, smallest.size - 1
        if smallest[here] < 0 or norm < squares[smallest[here]]:
            while here > 0 and (smallest[here - 1] < 0 or norm < squares[smallest[here - 1]]):
                smallest[here] = smallest[here - 1]
                here -= 1
            smallest[here] = at
        here = largest.size - 1
        if largest[here] < 0 or norm > squares[largest[here]]:
            while here > 0 and (largest[here - 1] < 0 or norm > squares[largest[here - 1]]):
                largest[here] = largest[here - 1]
                here -= 1
            largest[here] = at
    mean = total / squares.size
    variance = 0.0
    for i in range(squares.size):
        variance += (squares[i] - mean) ** 2
    out[0], out[1] = squares[smallest[0]], squares[largest[0]]
    out[2], out[3] = mean, math.sqrt(variance / squares.size)
