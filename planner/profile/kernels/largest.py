"""Keeping the few largest elements of a stream."""

from __future__ import annotations

import numba

__all__ = ["keep"]


@numba.njit
def keep(keys, patterns, places, key, pattern, place):
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
