"""Undo data: what a patch destroys and no more, kept in the ledger in safetensors files.

    undo.safetensors         each table (`residuals.pack_table`), replaced header and replaced small file, as bytes; and
                             frames (`frames`) of the tensors that changed, one after the other, each with its length
                             (4 bytes, little-endian) before it
    undo-00001.safetensors   frames alone, where there are more than some tens of MiB of them

The receipt beside them says which bytes are what. Everything is read back and proven against the source's digests
before the commit. Ledgers of versions before 0.6 have other arrays (`earlier`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner import fsio
from planner.checkpoint import encode_header, read_header
from planner.errors import CheckpointError, FileUnreadable, LedgerDamaged
from planner.transaction.ledger import UNDO
from planner.transaction.types import Frames
from planner.transaction.undo.residuals import PIECE, Coding, pack_table, unpack_table

__all__ = ["Arrays", "FrameReader", "UndoArrays", "UndoData", "UndoWriter", "damaged", "undo_files"]

_FILE = 32 * 2**20
_LENGTH = struct.Struct("<I")
_MORE = 16  # bytes by which a frame may be longer than its piece

Part = tuple[str, int, int]


@dataclass(frozen=True)
class UndoArrays:
    """Which bytes of the undo data are what."""

    frames: dict[str, Frames]
    """By tensor."""
    replaced: dict[str, str]
    """The array of each header and file, by the caller's name for it."""
    nbytes: int
    """Of all undo data."""


class Arrays:
    """Writes frames, one after the other, into files of some tens of MiB."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, 0
        self._waiting: list[bytes] = []
        self._size = 0
        self.parts: dict[str, list[Part]] = {}
        """Where those of each tensor are."""

    @property
    def _name(self) -> str:
        return f"frames/{self._files + 1}"

    def keep(self, tensor: str, frame: bytes) -> None:
        """Take the frame of the next piece of a tensor; each tensor in one go."""
        parts, begin = self.parts.setdefault(tensor, []), self._size
        self._waiting += [_LENGTH.pack(len(frame)), frame]
        self._size += _LENGTH.size + len(frame)
        if parts and parts[-1][0] == self._name:
            parts[-1] = (self._name, parts[-1][1], self._size - parts[-1][1])
        else:
            parts.append((self._name, begin, self._size - begin))
        if self._size >= _FILE:
            self.flush()

    def rest(self) -> dict[str, bytes]:
        """The array that waits, if there is one: for whoever writes it elsewhere."""
        return {self._name: b"".join(self._waiting)} if self._waiting else {}

    def flush(self) -> None:
        """Write what waits."""
        if rest := self.rest():
            self._files += 1
            _create(self._folder / f"undo-{self._files:05d}.safetensors", rest)
            self._waiting, self._size = [], 0


class UndoWriter:
    """Writes the undo data of one patch into its folder."""

    def __init__(self, folder: Path, codings: Mapping[str, Coding]) -> None:
        """`codings` has the table of every tensor that is changed by one."""
        self._folder, self._codings = folder, codings
        self._arrays = Arrays(folder)

    def keep(self, tensor: str, frame: bytes) -> None:
        """Take the frame of the next piece of a tensor; each tensor in one go."""
        self._arrays.keep(tensor, frame)

    def finish(self, replaced: Mapping[str, bytes]) -> UndoArrays:
        """Write what is left, and `replaced`, headers and files by a name of the caller. Returns which is what."""
        packed: dict[bytes, str] = {}
        known: dict[Coding, str] = {}  # many tensors have one and the same
        frames: dict[str, Frames] = {}
        for tensor, parts in self._arrays.parts.items():
            table = None
            if (coding := self._codings.get(tensor)) is not None:
                if coding not in known:
                    known[coding] = packed.setdefault(pack_table(coding.table), f"table/{len(packed)}")
                table = known[coding]
            frames[tensor] = Frames(table=table, parts=tuple(parts))
        others = {name: f"replaced/{number}" for number, name in enumerate(replaced)}
        arrays = {array: content for content, array in packed.items()}
        arrays |= {others[name]: content for name, content in replaced.items()}
        _create(self._folder / UNDO, arrays | self._arrays.rest())
        for array, kept in arrays.items():
            if b"".join(UndoData.of(self._folder).chunks(array)) != kept:
                raise fsio.not_as_written(f"undo data {array}")
        return UndoArrays(frames, others, sum(path.stat().st_size for path in undo_files(self._folder)))


def _create(path: Path, arrays: Mapping[str, bytes]) -> None:
    header = encode_header([(array, "U8", (len(content),)) for array, content in arrays.items()], {})
    fsio.create_file(path, [header, *arrays.values()])
    fsio.forget_cached(path)
    with fsio.storage_errors(path), path.open("rb") as file:
        if file.read(len(header)) != header:
            raise fsio.not_as_written(path.name)


def undo_files(folder: Path) -> list[Path]:
    """The files of the undo data of one patch."""
    with fsio.storage_errors(folder):
        return sorted(folder.glob("undo*.safetensors"))


class UndoData:
    """Arrays of undo data, to be read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the headers. Raises `LedgerDamaged`."""
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path in paths:
            try:
                header = read_header(path)
            except (CheckpointError, FileUnreadable) as error:
                raise LedgerDamaged(f"the undo data cannot be read: {error.message}", hint=_FROM_BACKUP) from None
            for entry in header.entries:
                if entry.name in self._places:
                    raise damaged(f"{entry.name!r} is there twice")
                self._places[entry.name] = (path, entry.begin, entry.nbytes)

    @classmethod
    def of(cls, folder: Path) -> UndoData:
        """Those of the patch whose record is in `folder`. Raises `LedgerDamaged`."""
        if not (folder / UNDO).is_file():
            raise LedgerDamaged(f"the undo data {folder / UNDO} is missing", hint=_FROM_BACKUP)
        return cls(undo_files(folder))

    @property
    def names(self) -> list[str]:
        """All arrays."""
        return list(self._places)

    def nbytes(self, name: str) -> int:
        """Size of an array. Raises `LedgerDamaged` if there is none of that name."""
        return self._place(name)[2]

    def read(self, name: str, begin: int, nbytes: int) -> bytes:
        """A part of an array. Raises `LedgerDamaged` or a `StorageError`."""
        path, at, size = self._place(name)
        if begin < 0 or begin + nbytes > size:
            raise damaged(f"{name!r} has {size:,} bytes")
        with fsio.storage_errors(path), path.open("rb", buffering=0) as file:
            file.seek(at + begin)
            found = file.read(nbytes)
        if len(found) != nbytes:
            raise damaged(f"{path.name} became shorter")
        return found

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of an array, `PIECE` at a time. Raises `LedgerDamaged` or a `StorageError`."""
        nbytes = self.nbytes(name)
        for begin in range(0, nbytes, PIECE):
            yield self.read(name, begin, min(PIECE, nbytes - begin))

    def table(self, name: str) -> Coding:
        """The tables of a coded edit. Raises `LedgerDamaged`."""
        if self.nbytes(name) > 2**20:
            raise damaged(f"{name!r} is no table")
        try:
            return Coding(unpack_table(b"".join(self.chunks(name))))
        except ValueError as error:
            raise damaged(f"{name!r}: {error}") from None

    def _place(self, name: str) -> tuple[Path, int, int]:
        if name not in self._places:
            raise damaged(f"{name!r} is not in it")
        return self._places[name]


class FrameReader:
    """The frames of one tensor, by their number."""

    def __init__(self, data: UndoData, parts: Iterable[Part]) -> None:
        self._data = data
        self._ahead = iter(parts)
        self._part: Part = ("", 0, 0)
        self._places: list[tuple[str, int, int]] = []
        """As far as they were looked for."""

    def frame(self, number: int) -> bytes:
        """The frame of piece `number`. Raises `LedgerDamaged` if there is none, or a `StorageError`."""
        while len(self._places) <= number:
            array, begin, left = self._part
            if not left:
                following = next(self._ahead, None)
                if following is None:
                    raise damaged("there is less of it than of its tensor")
                self._part = following
                continue
            (length,) = _LENGTH.unpack(self._data.read(array, begin, _LENGTH.size))
            if length > min(PIECE + _MORE, left - _LENGTH.size):
                raise damaged("a frame is longer than its place")
            self._places.append((array, begin + _LENGTH.size, length))
            self._part = (array, begin + _LENGTH.size + length, left - _LENGTH.size - length)
        return self._data.read(*self._places[number])

    def finish(self, pieces: int) -> None:
        """Raises `LedgerDamaged` if there are more frames than `pieces`."""
        if len(self._places) > pieces or self._part[2] or next(self._ahead, None) is not None:
            raise damaged("there is more of it than of its tensor")


def damaged(what: str) -> LedgerDamaged:
    """The error for undo data that make no sense."""
    return LedgerDamaged(f"the undo data are damaged: {what}", hint=_FROM_BACKUP)


_FROM_BACKUP = "restore it from a backup"
