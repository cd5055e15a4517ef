"""What an edit by a table destroys, and nothing more.

Such an edit replaces each stored pattern p by table[p]. Where only one pattern p leads to a new pattern q, an element q
can be nothing but p, and nothing has to be kept. Where k > 1 of them do, the element keeps which one it was: the rank
of p among them, ascending, in ceil(log2 k) bits. The residual of a tensor is these ranks one after the other, the
lowest bit first. It begins a new byte at every multiple of `PIECE` bytes of the tensor, so that a tensor can be coded
and taken back in pieces.

A table is kept as the differences of its neighbours (modulo its width), compressed with zlib: a few kilobytes, because
most neighbours lead to neighbours.
"""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PIECE", "Coding", "pack_table", "unpack_table"]

PIECE = 2**19
"""Bytes of a tensor that are coded at once. A part of the format."""

_NOWHERE = 17 << 16
_SMALL = 16 * 2**10  # bytes

Patterns = NDArray[np.unsignedinteger[Any]]
Bytes = NDArray[np.uint8]


class Coding:
    """The tables of the two loops, for one edit."""

    def __init__(self, table: Patterns) -> None:
        """`table` has the new pattern of every old one, uint8 [2^8] or uint16 [2^16]."""
        if table.dtype not in (np.uint8, np.uint16) or table.shape != (2 ** (8 * table.itemsize),):
            raise ValueError(f"no table of patterns: {table.dtype} {table.shape}")
        self.table = np.ascontiguousarray(table)
        self.pattern = table.dtype
        self._order = np.argsort(self.table, kind="stable")
        self._counts = np.bincount(self.table, minlength=len(table)).astype(np.uint32)
        self._starts = np.cumsum(self._counts, dtype=np.uint32) - self._counts
        # bit_length(k - 1), exactly: float64 holds every k here.
        self._widths = np.ceil(np.log2(np.maximum(self._counts, 1))).astype(np.uint32)

    @cached_property
    def _codes(self) -> NDArray[np.uint32]:
        """By old pattern: the new one in bits 0 to 15, the width of the rank above."""
        codes: NDArray[np.uint32] = self.table | self._widths[self.table] << np.uint32(16)
        return codes

    @cached_property
    def _ranks(self) -> NDArray[np.uint16]:
        """By old pattern: how many smaller ones lead to the same new one."""
        ranks = np.empty(len(self.table), np.uint16)
        ranks[self._order] = np.arange(len(self.table), dtype=np.uint32) - self._starts[self.table[self._order]]
        return ranks

    @cached_property
    def _places(self) -> NDArray[np.uint32]:
        """By new pattern: the width of the rank in bits 16 and above; below, the old one where there is only one, else
        the place of the first of them among the preimages. What is no new pattern at all has an impossible width.
        """
        first = np.minimum(self._starts, np.uint32(len(self.table) - 1))
        alone = self._order[first].astype(np.uint32)
        places = np.where(self._counts == 1, alone, first) | self._widths << np.uint32(16)
        return np.where(self._counts == 0, np.uint32(_NOWHERE), places)

    @cached_property
    def _preimages(self) -> Patterns:
        return self._order.astype(self.pattern)

    @property
    def room(self) -> int:
        """Bytes that the residual of one piece can take."""
        return 2 * PIECE // self.pattern.itemsize + 8

    def residual_bytes(self, counts: NDArray[np.int64]) -> int:
        """At most how many bytes the residual of a tensor takes whose pattern p occurs `counts[p]` times."""
        bits = int(np.vdot(counts, self._widths[self.table].astype(np.int64)))
        return bits // 8 + int(counts.sum()) * self.pattern.itemsize // PIECE + 1

    def forth(self, old: Patterns, new: Patterns, room: Bytes | None) -> tuple[int, int]:
        """Write the new patterns of one piece into `new`, and into `room` its residual, if it is asked for.

        Returns how many elements change, and the bytes of the residual. Releases the GIL.
        """
        if old.nbytes <= _SMALL:
            return self._forth(old, new, room)
        from planner.transaction.undo.kernels import look_up, look_up_with_residual  # here, because numba comes with it

        if room is None:
            return int(look_up(old, new, self._codes)), 0
        changed, size = look_up_with_residual(old, new, self._codes, self._ranks, room)
        return int(changed), int(size)

    def back(self, new: Patterns, old: Patterns, residual: Bytes, begin: int) -> int:
        """Write the old patterns of one piece into `old`, with the residual from `begin` on; returns where it goes on.

        Raises ValueError where the residual is not one of these elements. Releases the GIL.
        """
        if new.nbytes <= _SMALL:
            return self._back(new, old, residual, begin)
        from planner.transaction.undo.kernels import take_back  # here, because numba comes with it

        after = int(take_back(new, old, self._places, self._counts, self._preimages, residual, begin))
        if after < 0:
            raise ValueError("the residual is not that of these elements")
        return after

    # The same of few elements, for which loading the machine code would take longer than everything else.

    def _forth(self, old: Patterns, new: Patterns, room: Bytes | None) -> tuple[int, int]:
        new[:] = self.table[old]
        changed = int(np.count_nonzero(old != new))
        if room is None:
            return changed, 0
        which, bit = _bits(self._widths[new])
        packed = np.packbits(self._ranks[old][which] >> bit & 1, bitorder="little")
        room[: packed.size] = packed
        return changed, packed.size

    def _back(self, new: Patterns, old: Patterns, residual: Bytes, begin: int) -> int:
        if not self._counts[new].all():
            raise ValueError("the residual is not that of these elements")
        which, bit = _bits(self._widths[new])
        end = begin + (which.size + 7) // 8
        if end > residual.size:
            raise ValueError("the residual is not that of these elements")
        bits = np.unpackbits(residual[begin:end], count=which.size, bitorder="little").astype(np.uint32)
        ranks = np.zeros(new.size, np.uint32)
        np.add.at(ranks, which, bits << bit)
        if (ranks >= self._counts[new]).any():
            raise ValueError("the residual is not that of these elements")
        old[:] = self._preimages[self._starts[new] + ranks]
        return end


def _bits(widths: NDArray[np.uint32]) -> tuple[NDArray[np.intp], NDArray[np.uint32]]:
    """Of a row of numbers of so many bits each: for each bit, which number it is of, and which of its bits."""
    which = np.repeat(np.arange(widths.size), widths)
    begins = np.cumsum(widths) - widths
    return which, (np.arange(which.size) - begins[which]).astype(np.uint32)


def pack_table(table: Patterns) -> bytes:
    """The table in a few kilobytes."""
    differences = np.diff(table, prepend=table.dtype.type(0))  # wraps around, as unsigned integers do
    return zlib.compress(differences.astype(table.dtype.newbyteorder("<")).tobytes(), 6)


def unpack_table(packed: bytes) -> Patterns:
    """The table again. Raises ValueError if it is none."""
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(packed, 2**17 + 1)  # a longer one is no table, however long it would become
    except zlib.error as error:
        raise ValueError(f"no table: {error}") from None
    kind = {2**8: np.uint8, 2**17: np.uint16}.get(len(raw))
    if kind is None:
        raise ValueError(f"no table: {len(raw):,} bytes")
    differences = np.frombuffer(raw, np.dtype(kind).newbyteorder("<")).astype(kind)
    return np.cumsum(differences, dtype=kind)
