"""Frames: what gives one version of a piece of a tensor back from the other, and nothing that the other has already.

A tensor is cut into pieces of `PIECE` bytes, and each has a frame of its own: undo data hold frames that give the old
bytes from the new ones, portable patches frames that give the new from the old. The first byte of a frame is its mode;
the numbers are a part of the format.

    0  equal      nothing: the wanted bytes are the given ones
    1  ranks      the residual of an edit by a table, as `residuals` defines it
    2  ranks      the same, compressed
    3  table      nothing: the wanted patterns are what the table makes of the given ones
    4  predicted  predictor, layout, parameters, differences (see below)
    5  packed     the wanted bytes in planes
    6  raw        the wanted bytes

Compressed means one zstd frame that says its size. Planes are streams, one for the lowest byte of every element, one
for the next lowest, and so on. A stream is a size in 4 bytes, little-endian as all numbers, and so many bytes: the
plain ones if they are as many, else one zstd frame of them.

Predicted: a byte with the number of a predictor (`predicting` lists them); a byte of layout (0 dense, 1 sparse); in 4
bytes the number of differences that are not 0, in 4 bytes the size of the gaps; then planes of the parameters, if the
predictor has any, and of the differences. A difference is wanted minus predicted, modulo 2^bits, of integers that have
the order of the values (a pattern without sign has its top bit set, one with sign all bits inverted; patterns of
integers stay as they are), in zigzag: 0, -1, 1, -2, ... become 0, 1, 2, 3, .... Dense: planes of all of them. Sparse:
if any is not 0, a stream of gaps, then planes of those that are not 0, less one. A gap is how many zeros there are
since the last of them, in a byte; 255 of them are the byte 255, and the gap goes on.

No frame is more than one byte longer than its piece. What is decoded depends on nothing but the frame and the given
bytes: see `predicting` for how that is so on every machine, whatever vector units it has.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planner.dtypes import BITS
from planner.transaction.undo.residuals import Coding

if TYPE_CHECKING:
    from planner.transaction.undo.differing import Differing

__all__ = ["EQUAL", "PACKED", "PREDICTED", "RANKS", "RANKS_COMPRESSED", "RAW", "TABLE", "Framing"]

EQUAL, RANKS, RANKS_COMPRESSED, TABLE, PREDICTED, PACKED, RAW = range(7)

_TINY = 32  # bytes of a piece from which nothing is to be gained
_PROBE = 4096  # bytes of a residual that say whether the rest of it is worth compressing
_HARDLY = 0.97  # of its size: what saves less is not worth the time that it takes
_MANY = 0.25  # of the piece: ranks beyond that may be beaten by what knows the values

Bytes = NDArray[np.uint8]
Patterns = NDArray[np.unsignedinteger[Any]]


class Framing:
    """Frames of the pieces of one tensor. Several threads may code different pieces at once."""

    def __init__(
        self, dtype: str, shape: tuple[int, ...], coding: Coding | None = None, *, forwards: bool = False
    ) -> None:
        """`dtype` as safetensors names it, `shape` the tensor's.

        `coding` is of the edit, where that is a table: the given bytes were made from the wanted ones by it or, with
        `forwards`, the wanted are made from the given. Raises ValueError if its patterns are not of the dtype's width.
        """
        bits = BITS.get(dtype, 8)
        self._dtype = dtype
        self._pattern = np.dtype(f"<u{bits // 8}" if bits in (8, 16, 32, 64) else "<u1")
        self._length = max(shape[-1], 1) if shape else 1
        if coding and coding.pattern != self._pattern:
            raise ValueError(f"a table of {coding.pattern} is none for {dtype}")
        self._forth = coding if forwards else None
        self._back = None if forwards else coding

    def encode(self, wanted: Bytes, given: Bytes, begin: int, ranks: bytes | None = None) -> bytes:
        """The frame that gives `wanted` from `given`, two uint8 arrays of one size, at byte `begin` of the tensor.

        `ranks` is the residual of the piece, where the caller has it; it is not checked. Releases the GIL in the heavy
        parts. Raises ValueError if the sizes differ or are not of whole elements.
        """
        self._check(wanted, given, begin)
        if np.array_equal(wanted, given):
            return bytes([EQUAL])
        if wanted.size <= _TINY:
            return bytes([RAW]) + wanted.tobytes()
        there, here = self._elements(wanted), self._elements(given)
        if self._forth and np.array_equal(self._forth.table[here], there):
            return bytes([TABLE])
        frames = []
        if self._back and (ranks := self._ranks(there, here) if ranks is None else ranks) is not None:
            frames.append(_ranks_frame(ranks))
            if len(frames[0]) <= _MANY * wanted.size:
                return frames[0]
        predicted, packed = self._differing.encode(there, here, begin // self._pattern.itemsize)
        frames += [bytes([PREDICTED]) + predicted] if predicted is not None else []
        frames += [bytes([PACKED]) + packed] if packed is not None else []
        smallest = min(frames, key=len, default=None)
        if smallest is not None and len(smallest) <= wanted.size:
            return smallest
        return bytes([RAW]) + wanted.tobytes()

    def decode(self, frame: bytes | memoryview, given: Bytes, begin: int, wanted: Bytes) -> None:
        """Write into `wanted` what the frame gives from `given`, at byte `begin` of the tensor.

        A damaged frame raises ValueError, or gives other bytes; it never takes more memory than a sound one. Releases
        the GIL in the heavy parts.
        """
        self._check(wanted, given, begin)
        if not 0 < len(frame) <= wanted.size + 1:
            raise ValueError(f"{len(frame):,} bytes are no frame of a piece of {wanted.size:,}")
        mode, payload = frame[0], memoryview(frame)[1:]
        if mode in (EQUAL, TABLE) and len(payload):
            raise ValueError("the frame goes on behind its end")
        if mode == EQUAL:
            wanted[:] = given
        elif mode == RAW:
            if len(payload) != wanted.size:
                raise ValueError("the frame is of another size than its piece")
            wanted[:] = np.frombuffer(payload, np.uint8)
        elif self._fits(wanted):
            self._decode(mode, payload, self._elements(given), begin, wanted.view(self._pattern))
        else:
            there = np.empty(wanted.size // self._pattern.itemsize, self._pattern)
            self._decode(mode, payload, self._elements(given), begin, there)
            wanted[:] = there.view(np.uint8)

    def _decode(self, mode: int, payload: memoryview, given: Patterns, begin: int, wanted: Patterns) -> None:
        if mode == TABLE and self._forth:
            self._forth.forth(given, wanted, None)
        elif mode in (RANKS, RANKS_COMPRESSED) and self._back:
            if mode == RANKS_COMPRESSED:
                from planner.transaction.undo.compressing import (  # here, because zstandard comes with it
                    decompress,
                    size_of,
                )

                payload = memoryview(decompress(payload, size_of(payload, wanted.nbytes + 8)))
            residual = np.frombuffer(payload, np.uint8).copy()  # the loop takes no array that is not writable
            if self._back.back(given, wanted, residual, 0) != residual.size:
                raise ValueError("there is more of a residual than of its piece")
        elif mode == PREDICTED:
            self._differing.decode(payload, given, begin // self._pattern.itemsize, wanted)
        elif mode == PACKED:
            self._differing.unpack(payload, wanted)
        else:
            raise ValueError(f"mode {mode} is none of such a tensor")

    @cached_property
    def _differing(self) -> Differing:
        from planner.transaction.undo.differing import Differing  # here, because numba and zstandard come with it

        return Differing(self._dtype, self._pattern, self._length)

    def _ranks(self, wanted: Patterns, given: Patterns) -> bytes | None:
        """The residual of the piece; None if the table does not lead from the wanted patterns to the given ones."""
        assert self._back
        new, room = np.empty_like(given), np.empty(2 * given.size + 8, np.uint8)
        _, size = self._back.forth(wanted, new, room)
        return room[:size].tobytes() if np.array_equal(new, given) else None

    def _check(self, wanted: Bytes, given: Bytes, begin: int) -> None:
        if wanted.size != given.size or wanted.size % self._pattern.itemsize or begin % self._pattern.itemsize:
            raise ValueError(f"{wanted.size:,} and {given.size:,} bytes at {begin:,} are no piece of {self._dtype}")

    def _fits(self, data: Bytes) -> bool:
        """Whether the loops take these bytes as they lie."""
        flags = data.view(self._pattern).flags if data.flags.c_contiguous else data.flags
        return flags.c_contiguous and flags.aligned and flags.writeable

    def _elements(self, data: Bytes) -> Patterns:
        return data.view(self._pattern) if self._fits(data) else data.copy().view(self._pattern)


def _ranks_frame(ranks: bytes) -> bytes:
    from planner.transaction.undo.compressing import compress  # here, because zstandard comes with it

    middle = max(len(ranks) - _PROBE, 0) // 2
    probe = ranks[middle : middle + _PROBE]
    if len(compress(probe)) < _HARDLY * len(probe) and len(smaller := compress(ranks)) < len(ranks):
        return bytes([RANKS_COMPRESSED]) + smaller
    return bytes([RANKS]) + ranks
