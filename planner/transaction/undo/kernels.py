"""The two loops over the elements of an edit that is a table: forth with a residual, and back with it.

`residuals` says what the tables and the residual are. Each loop releases the GIL and is known on disk by this file
alone, so nothing here calls another file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.machine_code import compiled

__all__ = ["look_up", "look_up_with_residual", "take_back"]

_RUN = 4096  # elements; the list of those that are found in a run fits in the first cache


@compiled(
    "int64(uint8[::1], uint8[::1], uint32[::1])",
    "int64(uint16[::1], uint16[::1], uint32[::1])",
)
def look_up(old: Any, new: Any, codes: Any) -> Any:
    """Write the new patterns; returns how many differ from the old ones."""
    changed = 0
    for i in range(old.size):
        pattern = codes[old[i]] & np.uint32(0xFFFF)
        new[i] = pattern
        changed += pattern != old[i]
    return changed


@compiled(
    "UniTuple(int64, 2)(uint8[::1], uint8[::1], uint32[::1], uint16[::1], uint8[::1])",
    "UniTuple(int64, 2)(uint16[::1], uint16[::1], uint32[::1], uint16[::1], uint8[::1])",
)
def look_up_with_residual(old: Any, new: Any, codes: Any, ranks: Any, residual: Any) -> Any:
    """Write the new patterns and the residual; returns how many elements differ, and the bytes of the residual.

    `residual` has room for two bytes an element and eight more.
    """
    changed = 0
    size = 0
    bits = np.uint64(0)
    filled = np.uint64(0)
    for i in range(old.size):
        code = codes[old[i]]
        pattern = code & np.uint32(0xFFFF)
        new[i] = pattern
        changed += pattern != old[i]
        bits |= np.uint64(ranks[old[i]]) << filled  # without asking whether there is one: a wrong guess costs more
        filled += np.uint64(code >> np.uint32(16))
        if filled >= np.uint64(32):
            for _ in range(4):
                residual[size] = bits & np.uint64(0xFF)
                size += 1
                bits >>= np.uint64(8)
            filled -= np.uint64(32)
    while filled > np.uint64(0):
        residual[size] = bits & np.uint64(0xFF)
        size += 1
        bits >>= np.uint64(8)
        filled -= min(filled, np.uint64(8))
    return changed, size


@compiled(
    "int64(uint8[::1], uint8[::1], uint32[::1], uint32[::1], uint8[::1], uint8[::1], int64)",
    "int64(uint16[::1], uint16[::1], uint32[::1], uint32[::1], uint16[::1], uint8[::1], int64)",
)
def take_back(new: Any, old: Any, places: Any, counts: Any, preimages: Any, residual: Any, begin: Any) -> Any:
    """Write the old patterns; returns where the residual goes on, or -1 where it is not one of these elements."""
    size = begin
    bits = np.uint64(0)
    filled = np.uint64(0)
    kept = np.empty(_RUN, np.int64)
    for first in range(0, new.size, _RUN):
        # First a loop without branches that finds the elements with a residual, then those alone: they are few.
        count = 0
        for i in range(first, min(first + _RUN, new.size)):
            place = places[new[i]]
            old[i] = place & np.uint32(0xFFFF)  # right wherever there is only one it can be
            kept[count] = i
            count += (place >> np.uint32(16)) != np.uint32(0)
        for number in range(count):
            i = kept[number]
            place = places[new[i]]
            width = np.uint64(place >> np.uint32(16))
            if width > np.uint64(16):
                return -1
            while filled < width:
                if size >= residual.size:
                    return -1
                bits |= np.uint64(residual[size]) << filled
                size += 1
                filled += np.uint64(8)
            rank = bits & ((np.uint64(1) << width) - np.uint64(1))
            bits >>= width
            filled -= width
            if rank >= counts[new[i]]:
                return -1
            old[i] = preimages[(place & np.uint32(0xFFFF)) + rank]
    return size
