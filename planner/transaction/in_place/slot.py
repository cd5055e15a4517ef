"""The double-write slot: what a chunk is to be in the end, kept beside it while it is overwritten.

One chunk at a time: its bytes are written here and made durable, then over their place and made durable there. A crash
in the first leaves the place untouched and the slot broken, which its digest shows; a crash in the second leaves the
slot whole.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from planner import fsio

__all__ = ["Chunk", "Slot", "room_of"]

_MAGIC = b"planner1"
_HEAD = struct.Struct("<8sIQ")
_ENTRY = struct.Struct("<III")
_DIGEST = 32


@dataclass(frozen=True)
class Chunk:
    """Bytes that belong to a place: piece `number` of a tensor, which is known by its place in the journal."""

    tensor: int
    number: int
    content: bytes


def room_of(nbytes: int, pieces: int) -> int:
    """Bytes of a slot for so many bytes in so many pieces."""
    return _HEAD.size + pieces * _ENTRY.size + nbytes + _DIGEST


class Slot:
    """One file of fixed size."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def reserve(self, nbytes: int) -> None:
        """Make it. Raises `NoSpace`."""
        fsio.reserve_file(self._path, nbytes)
        fsio.fsync_file(self._path)

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Keep these, durably, in place of what was kept before. Raises a `StorageError`, also if the disk did not."""
        size = sum(_ENTRY.size + len(chunk.content) for chunk in chunks)
        parts = [_HEAD.pack(_MAGIC, len(chunks), size)]
        parts += [_ENTRY.pack(chunk.tensor, chunk.number, len(chunk.content)) for chunk in chunks]
        parts += [chunk.content for chunk in chunks]
        hasher = blake3()  # part by part: a chunk is copied once here, and not at every step
        for part in parts:
            hasher.update(part)
        with fsio.open_in_place(self._path) as descriptor:
            fsio.overwrite(descriptor, b"".join([*parts, hasher.digest()]), 0)
        fsio.forget_cached(self._path)
        if len(self.kept()) != len(chunks):
            raise fsio.not_as_written(self._path.name)

    def kept(self) -> dict[tuple[int, int], bytes]:
        """What is kept, by tensor and number; nothing where the slot is empty or broken."""
        with fsio.storage_errors(self._path):
            raw = self._path.read_bytes()
        if len(raw) < _HEAD.size:
            return {}
        magic, count, size = _HEAD.unpack_from(raw)
        end = _HEAD.size + size
        if magic != _MAGIC or end + _DIGEST > len(raw) or count * _ENTRY.size > size:
            return {}
        if blake3(raw[:end]).digest() != raw[end : end + _DIGEST]:
            return {}
        found = {}
        at = _HEAD.size + count * _ENTRY.size
        for index in range(count):
            tensor, number, nbytes = _ENTRY.unpack_from(raw, _HEAD.size + index * _ENTRY.size)
            found[tensor, number] = raw[at : at + nbytes]
            at += nbytes
        return found
