"""Undo data: what a patch destroys and no more, kept in the ledger in safetensors files, so that any tool can read it.

    undo.safetensors         for each tensor that is not coded, its original bytes under its own name; each table
                             (`residuals.pack_table`), replaced header and replaced small file, as bytes
    undo-00001.safetensors   residuals (`residuals`), some tens of MiB a file

The receipt beside them says which array is what: a tensor whose entry has no `undo` is kept as its original bytes, as
all are in the ledgers of earlier versions. Everything is read back and proven against the source's digests before the
commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner import fsio
from planner.checkpoint import Checkpoint, encode_header, read_header
from planner.errors import CheckpointError, FileUnreadable, LedgerDamaged
from planner.transaction.ledger import UNDO
from planner.transaction.residuals import PIECE, Coding, pack_table, unpack_table
from planner.transaction.types import Residual

__all__ = ["Backwards", "UndoArrays", "UndoData", "UndoWriter", "damaged", "undo_files"]

_FILE = 32 * 2**20
_WORTH_IT = 0.75  # of a tensor's bytes: a residual beyond that is given up for the bytes themselves

Bytes = NDArray[np.uint8]


@dataclass
class _Coded:
    """The residual of one tensor, as far as it has come."""

    table: Coding
    arrays: list[str]
    waiting: list[bytes]
    seen: int = 0
    size: int = 0


class UndoWriter:
    """Writes the undo data of one patch into its folder."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, codings: Mapping[str, Coding]) -> None:
        """`codings` has the table of every tensor that may be coded."""
        self._folder, self._checkpoint = folder, checkpoint
        self._prefix = ""  # so that no array of ours is called as a tensor is
        while any(name.startswith((f"{self._prefix}residual/", f"{self._prefix}undo/")) for name in checkpoint.tensors):
            self._prefix += "_"
        self._coded = {name: _Coded(coding, [], []) for name, coding in codings.items()}
        self._waiting = self._arrays = self._files = 0

    def keep_residual(self, name: str, residual: bytes) -> bool:
        """Take the residual of the next piece of a tensor; False if it is given up."""
        coded = self._coded[name]
        coded.seen += PIECE
        coded.size += len(residual)
        if coded.size > _WORTH_IT * min(coded.seen, self._checkpoint.tensors[name].nbytes):
            self._waiting -= sum(map(len, coded.waiting))
            coded.waiting.clear()
            return False
        if residual:
            coded.waiting.append(residual)
            self._waiting += len(residual)
            if self._waiting >= _FILE:
                self._flush()
        return True

    def finish(self, coded: Iterable[str], originals: Iterable[str], replaced: Mapping[str, bytes]) -> UndoArrays:
        """Write what is left: `originals` are kept whole, and `replaced` are headers and files by a name of the caller.

        Returns which array is what.
        """
        self._flush()
        tables: dict[bytes, str] = {}
        residuals: dict[str, Residual] = {}
        for name in coded:
            packed = pack_table(self._coded[name].table.table)
            table = tables.setdefault(packed, f"{self._prefix}undo/table/{len(tables)}")
            residuals[name] = Residual(table=table, arrays=tuple(self._coded[name].arrays))
        others = {name: f"{self._prefix}undo/{number}" for number, name in enumerate(replaced)}
        tensors = [self._checkpoint.tensors[name] for name in originals]
        arrays = {array: packed for packed, array in tables.items()}
        arrays |= {others[name]: content for name, content in replaced.items()}
        entries = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
        entries += [(array, "U8", (len(content),)) for array, content in arrays.items()]
        header = encode_header(entries, {"format": "pt"})

        def content() -> Iterator[bytes]:
            yield header
            for tensor in tensors:
                yield from self._checkpoint.chunks(tensor)
            yield from arrays.values()

        self._create(UNDO, content(), header)
        for array, kept in arrays.items():
            if b"".join(UndoData(self._folder).chunks(array)) != kept:
                raise fsio.not_as_written(f"undo data {array}")
        return UndoArrays(residuals, others, sum(path.stat().st_size for path in undo_files(self._folder)))

    def _flush(self) -> None:
        """Write the residuals that wait; each array has whole pieces of one tensor."""
        entries: list[tuple[str, str, tuple[int, ...]]] = []
        parts: list[bytes] = []
        for coded in self._coded.values():
            if coded.waiting:
                array = f"{self._prefix}residual/{self._arrays}"
                self._arrays += 1
                coded.arrays.append(array)
                entries.append((array, "U8", (sum(map(len, coded.waiting)),)))
                parts += coded.waiting
                coded.waiting = []
        self._waiting = 0
        if entries:
            self._files += 1
            header = encode_header(entries, {"format": "pt"})
            self._create(f"undo-{self._files:05d}.safetensors", [header, *parts], header)

    def _create(self, name: str, content: Iterable[bytes], header: bytes) -> None:
        fsio.create_file(self._folder / name, content)
        with fsio.storage_errors(self._folder / name), (self._folder / name).open("rb") as file:
            if file.read(len(header)) != header:
                raise fsio.not_as_written(name)


@dataclass(frozen=True)
class UndoArrays:
    """Which array of the undo data is what."""

    residuals: dict[str, Residual]
    """By tensor."""
    replaced: dict[str, str]
    """Of each header and file, by the caller's name for it."""
    nbytes: int
    """Of all undo data."""


def undo_files(folder: Path) -> list[Path]:
    """The files of the undo data of one patch."""
    return sorted(folder.glob("undo*.safetensors"))


class UndoData:
    """The undo data of one patch, to be read."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers. Raises `LedgerDamaged`."""
        if not (folder / UNDO).is_file():
            raise LedgerDamaged(f"the undo data {folder / UNDO} is missing", hint=_FROM_BACKUP)
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path in undo_files(folder):
            try:
                header = read_header(path)
            except (CheckpointError, FileUnreadable) as error:
                raise LedgerDamaged(f"the undo data cannot be read: {error.message}", hint=_FROM_BACKUP) from None
            for entry in header.entries:
                if entry.name in self._places:
                    raise damaged(f"{entry.name!r} is there twice")
                self._places[entry.name] = (path, entry.begin, entry.nbytes)

    @property
    def names(self) -> list[str]:
        """All arrays."""
        return list(self._places)

    def nbytes(self, name: str) -> int:
        """Size of an array. Raises `LedgerDamaged` if there is none of that name."""
        return self._place(name)[2]

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of an array, `PIECE` at a time. Raises `LedgerDamaged` or a `StorageError`."""
        path, begin, nbytes = self._place(name)
        with fsio.storage_errors(path), path.open("rb", buffering=0) as file:
            file.seek(begin)
            while nbytes > 0:
                chunk = file.read(min(PIECE, nbytes))
                if not chunk:
                    raise damaged(f"{path.name} became shorter")
                nbytes -= len(chunk)
                yield chunk

    def table(self, name: str) -> Coding:
        """The tables of a coded edit. Raises `LedgerDamaged`."""
        try:
            return Coding(unpack_table(b"".join(self.chunks(name))))
        except ValueError as error:
            raise damaged(f"{name!r}: {error}") from None

    def _place(self, name: str) -> tuple[Path, int, int]:
        if name not in self._places:
            raise damaged(f"{name!r} is not in it")
        return self._places[name]


class Backwards:
    """Takes the new bytes of one tensor, piece by piece, and gives the old ones back."""

    def __init__(self, data: UndoData, residual: Residual, coding: Coding) -> None:
        """`coding` is that of the residual's table."""
        self._coding = coding
        self._arrays = iter(residual.arrays)
        self._data = data
        self._residual = np.empty(0, np.uint8)
        self._begin = 0

    def take_back(self, new: Bytes, old: Bytes) -> None:
        """Write into `old` what `new`, the next `PIECE` bytes, was made from. Raises `LedgerDamaged`."""
        if self._begin == self._residual.size:
            self._begin = 0
            array = next(self._arrays, None)
            empty = np.empty(0, np.uint8)
            self._residual = (
                empty if array is None else np.frombuffer(bytearray().join(self._data.chunks(array)), np.uint8)
            )
        pattern = self._coding.pattern
        try:
            self._begin = self._coding.back(new.view(pattern), old.view(pattern), self._residual, self._begin)
        except ValueError as error:
            raise damaged(str(error)) from None

    def finish(self) -> None:
        """Raises `LedgerDamaged` if there is more residual than tensor."""
        if self._begin != self._residual.size or next(self._arrays, None) is not None:
            raise damaged("there is more of a residual than of its tensor")


def damaged(what: str) -> LedgerDamaged:
    """The error for undo data that make no sense."""
    return LedgerDamaged(f"the undo data are damaged: {what}", hint=_FROM_BACKUP)


_FROM_BACKUP = "restore it from a backup"
