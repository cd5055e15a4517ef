"""Fill the stage in one pass over the source: each piece is read, hashed, changed, hashed again and written.

What the source was, and so whether the plan is for it at all, is known at the end of that pass and not before: nothing
has a name that anybody reads until then.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from planner import fsio
from planner.checkpoint import Checkpoint, TensorReader, digest_bytes, digest_file, fingerprint_of
from planner.dtypes import BITS
from planner.transaction.line import in_line
from planner.transaction.residuals import PIECE, Coding
from planner.transaction.state import files_of, folders_of, shard_digest
from planner.transaction.types import FileState, State

__all__ = ["Added", "Change", "Changes", "Content", "Outcome", "Pool", "Written", "fill_stage"]

Bytes = NDArray[np.uint8]
Content = Callable[[], Iterator[Bytes]]
"""Gives the new bytes of one tensor, in order, in pieces."""
Progress = Callable[[int], None]
KeepResidual = Callable[[str, bytes], bool]
"""Told a tensor and the residual of its next piece; returns whether there is any use in going on."""

WORTH_THREADS = 16 * 2**20
_SMALL = 16 * 2**10  # bytes of a tensor for which the machine code need not be loaded, nor a residual kept


@dataclass(frozen=True)
class Change:
    """What becomes of a tensor: either a table, or other content."""

    coding: Coding | None = None
    content: Content | None = None


@dataclass(frozen=True)
class Added:
    """A tensor behind those of a shard."""

    name: str
    content: Content
    nbytes: int
    elements: int


@dataclass(frozen=True)
class Changes:
    """Everything that the stage has and the source has not."""

    tensors: Mapping[str, Change] = field(default_factory=dict)
    added: Mapping[str, Sequence[Added]] = field(default_factory=dict)
    """By shard."""
    removed: frozenset[str] = frozenset()
    """Tensors that the stage has not."""
    headers: Mapping[str, bytes] = field(default_factory=dict)
    """New ones, length included, by shard."""
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    """Small files with other content; None for one that goes away."""


@dataclass
class Outcome:
    """What was done to a tensor that changed or is new."""

    digest: str
    changed_elements: int
    coded: bool
    """Whether a residual of all of it was handed out."""


@dataclass(frozen=True)
class Written:
    """What was read and what was written, from one and the same pass."""

    before: State
    files: Mapping[str, FileState]
    """The stage, as it was meant."""
    tensors: Mapping[str, str]
    """Digests of its tensors, as they were meant."""
    outcomes: Mapping[str, Outcome]
    linked: frozenset[str]
    """Files that are those of the source under a second name."""


class Pool:
    """Buffers of `PIECE` bytes, used again: fresh memory costs more than what is done with it."""

    def __init__(self) -> None:
        self._free: list[Bytes] = []

    def take(self) -> Bytes:
        """One that nobody uses."""
        with suppress(IndexError):
            return self._free.pop()
        return np.empty(PIECE, np.uint8)

    def give_back(self, *buffers: Bytes | None) -> None:
        """These are used no longer."""
        self._free += [buffer for buffer in buffers if buffer is not None]


def fill_stage(
    checkpoint: Checkpoint,
    stage: Path,
    changes: Changes,
    *,
    share: bool,
    keep_residual: KeepResidual | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write every file of the checkpoint into the stage, with the changes, and say what was there and what is now.

    With `share`, an unchanged file may be the same file under a second name (for an in-place switch, where the old
    name goes away). The bytes of shards are not yet durable. Raises a `StorageError` or what reading raises.
    """
    filling = _Filling(checkpoint, stage, changes, share, keep_residual, progress or (lambda _: None))
    for name in folders_of(checkpoint.path):
        fsio.make_folder(stage / name, like=checkpoint.path / name)
    shards = {shard.name for shard in checkpoint.shards}
    for name in files_of(checkpoint.path):
        if name in shards:
            filling.shard(name)
        else:
            filling.other(name)
    for name in changes.files.keys() - filling.before.keys():
        filling.new(name)
    before = State(
        fingerprint=fingerprint_of(checkpoint, filling.old_digests),
        files=filling.before,
        tensors=filling.old_digests,
    )
    return Written(before, filling.after, filling.new_digests, filling.outcomes, frozenset(filling.linked))


@dataclass(slots=True)
class _Work:
    """One tensor on its way."""

    name: str
    nbytes: int
    unit: int
    """Bytes of an element, where they are whole."""
    change: Change | None
    old: Any = None
    """Hasher of the bytes there are; None for a new tensor."""
    new: Any = None
    """Hasher of the bytes to be, where they are others."""
    changed: int = 0
    coded: bool = False
    rooms: tuple[Bytes, Bytes] | None = None
    """For the residuals of two pieces, one with an even and one with an odd number."""


@dataclass(slots=True)
class _Piece:
    work: _Work
    old: Bytes | None
    new: Bytes | None
    buffers: list[Bytes]
    last: bool
    odd: bool = False
    """Whether its number in the tensor is odd: two threads transform, each every other piece."""
    changed: int = 0
    residual: bytes = b""


class _Filling:
    def __init__(
        self,
        checkpoint: Checkpoint,
        stage: Path,
        changes: Changes,
        share: bool,
        keep_residual: KeepResidual | None,
        progress: Progress,
    ) -> None:
        self._checkpoint, self._stage, self._changes = checkpoint, stage, changes
        self._share, self._keep_residual, self._progress = share, keep_residual, progress
        self._pool = Pool()
        self.before: dict[str, FileState] = {}
        self.after: dict[str, FileState] = {}
        self.old_digests: dict[str, str] = {}
        self.new_digests: dict[str, str] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.linked: set[str] = set()

    def shard(self, name: str) -> None:
        """Write one shard, or take it over."""
        source, target = self._checkpoint.path / name, self._stage / name
        entries = self._checkpoint.header(name).entries
        old_header = self._checkpoint.header_bytes(name)
        new_header = self._changes.headers.get(name, old_header)
        rewritten = (
            name in self._changes.headers
            or name in self._changes.added
            or any(entry.name in self._changes.tensors or entry.name in self._changes.removed for entry in entries)
        )
        with closing(self._shard_bytes(name, new_header)) as content:
            if rewritten:
                fsio.create_file(target, content, like=source, durable=False)
            else:
                self._take_over(name, content)
                for _ in content:  # hashed at least, where it needed no writing
                    pass
        with fsio.storage_errors(source):
            found = source.stat()
        mode = stat.S_IMODE(found.st_mode)
        digest = shard_digest(old_header, (self.old_digests[entry.name] for entry in entries))
        self.before[name] = FileState(digest=digest, size=found.st_size, mode=mode)
        if rewritten:
            with fsio.storage_errors(target):
                size = target.stat().st_size
            kept = [entry.name for entry in entries if entry.name not in self._changes.removed]
            kept += [added.name for added in self._changes.added.get(name, ())]
            digest = shard_digest(new_header, (self.new_digests[tensor] for tensor in kept))
            self.after[name] = FileState(digest=digest, size=size, mode=mode)
        else:
            self.after[name] = self.before[name]

    def other(self, name: str) -> None:
        """Take over one other file, or write its new content."""
        source, target = self._checkpoint.path / name, self._stage / name
        with fsio.storage_errors(source):
            found = source.stat()
            mode = stat.S_IMODE(found.st_mode)
            # config.json as it was read: the fingerprint is of these bytes
            config = name == "config.json"
            digest = digest_bytes(self._checkpoint.config_bytes) if config else digest_file(source)
        self.before[name] = FileState(digest=digest, size=found.st_size, mode=mode)
        if name not in self._changes.files:
            self._take_over(name, None)
            self.after[name] = self.before[name]
        elif (content := self._changes.files[name]) is not None:
            fsio.create_file(target, [content], like=source)
            self.after[name] = FileState(digest=digest_bytes(content), size=len(content), mode=mode)
        self._progress(found.st_size)

    def new(self, name: str) -> None:
        """Write a small file that the source has not."""
        content = self._changes.files[name]
        if content is not None:
            fsio.create_file(self._stage / name, [content])
            self.after[name] = FileState(digest=digest_bytes(content), size=len(content), mode=0o644)

    def _take_over(self, name: str, content: Iterator[memoryview] | None) -> None:
        source, target = self._checkpoint.path / name, self._stage / name
        copied = fsio.link_or_copy_file if self._share else fsio.copy_file
        copied(source, target, chunks=content, durable=content is None)
        with fsio.storage_errors(target):
            if target.samefile(source):
                self.linked.add(name)

    def _shard_bytes(self, name: str, header: bytes) -> Generator[memoryview]:
        yield memoryview(header)
        threads = sum(entry.nbytes for entry in self._checkpoint.header(name).entries) >= WORTH_THREADS
        steps = (self._transform_even, self._transform_odd, self._hash_new)
        with closing(in_line(self._pieces(name), *steps, threads=threads)) as done:
            for piece in done:
                if piece.new is not None:
                    yield piece.new.data
                self._count(piece)

    def _pieces(self, name: str) -> Generator[_Piece]:
        """What there is to do, with the old bytes read."""
        with TensorReader(self._checkpoint) as reader:
            for entry in self._checkpoint.header(name).entries:
                change = self._changes.tensors.get(entry.name)
                removed = entry.name in self._changes.removed
                work = _Work(entry.name, entry.nbytes, max(BITS[entry.dtype] // 8, 1), change, old=blake3())
                work.new = blake3() if change else None
                if change and change.coding and self._keep_residual and entry.nbytes > _SMALL:
                    work.coded = True
                    work.rooms = (np.empty(change.coding.room, np.uint8), np.empty(change.coding.room, np.uint8))
                if change and change.content:
                    yield from self._with_content(work, change.content, reader)
                    continue
                for offset in range(0, max(entry.nbytes, 1), PIECE):
                    buffer = self._pool.take()
                    old = buffer[: min(PIECE, entry.nbytes - offset)]
                    reader.read_into(old.data, self._checkpoint.tensors[entry.name], offset)
                    same = change is None and not removed
                    last, odd = offset + PIECE >= entry.nbytes, bool(offset // PIECE % 2)
                    piece = _Piece(work, old, old if same else None, [buffer], last, odd)
                    self._hash_old(piece)  # at once, while what was read is in the cache
                    yield piece
            for added in self._changes.added.get(name, ()):
                work = _Work(added.name, added.nbytes, 1, None, new=blake3(), changed=added.elements)
                yield from self._with_content(work, added.content, None)

    def _with_content(self, work: _Work, content: Content, reader: TensorReader | None) -> Generator[_Piece]:
        done = 0
        with closing(_cut(content())) as parts:
            for new in parts:
                buffer = old = None
                if reader and done + new.size <= work.nbytes:
                    buffer = self._pool.take()
                    old = buffer[: new.size]
                    reader.read_into(old.data, self._checkpoint.tensors[work.name], done)
                done += new.size
                piece = _Piece(work, old, new, [] if buffer is None else [buffer], last=False)
                self._hash_old(piece)
                yield piece
        if done != work.nbytes:
            raise ValueError(f"{work.name} has {work.nbytes:,} bytes; {done:,} came")
        nothing = np.empty(0, np.uint8)
        yield _Piece(work, nothing, nothing, [], last=True)

    def _hash_old(self, piece: _Piece) -> None:
        if piece.old is not None and piece.work.old is not None:
            piece.work.old.update(piece.old)

    # The slowest step by far where everything is changed; what two pieces have in common is touched by nobody there.
    def _transform_even(self, piece: _Piece) -> None:
        if not piece.odd:
            self._transform(piece)

    def _transform_odd(self, piece: _Piece) -> None:
        if piece.odd:
            self._transform(piece)

    def _transform(self, piece: _Piece) -> None:
        work, change = piece.work, piece.work.change
        if change is None or piece.old is None:
            return
        if change.coding is None:
            if piece.new is not None:
                kind = f"<u{work.unit}"
                piece.changed = int(np.count_nonzero(piece.old.view(kind) != piece.new.view(kind)))
            return
        buffer = self._pool.take()
        piece.buffers.append(buffer)
        piece.new = buffer[: piece.old.size]
        old, new = piece.old.view(change.coding.pattern), piece.new.view(change.coding.pattern)
        if work.nbytes <= _SMALL:
            new[:] = change.coding.table[old]
            piece.changed = int(np.count_nonzero(old != new))
            return
        room = work.rooms[piece.odd] if work.rooms and work.coded else None
        piece.changed, size = change.coding.forth(old, new, room)
        if room is not None:
            piece.residual = room[:size].tobytes()

    def _hash_new(self, piece: _Piece) -> None:
        if piece.new is not None and piece.work.new is not None:
            piece.work.new.update(piece.new)

    def _count(self, piece: _Piece) -> None:
        """What is left to do once a piece is written."""
        work = piece.work
        done = piece.old if piece.new is None else piece.new
        work.changed += piece.changed
        if work.coded and self._keep_residual and not self._keep_residual(work.name, piece.residual):
            work.coded = False
        if piece.last:
            if work.old is not None:
                self.old_digests[work.name] = _named(work.old)
            if work.new is not None:
                self.new_digests[work.name] = _named(work.new)
                self.outcomes[work.name] = Outcome(self.new_digests[work.name], work.changed, work.coded)
            elif work.name not in self._changes.removed:
                self.new_digests[work.name] = self.old_digests[work.name]
            work.old = work.new = work.rooms = None  # 250,000 hashers would take half a GiB
        self._pool.give_back(*piece.buffers)
        self._progress(0 if done is None else done.size)


def _cut(blocks: Iterator[Bytes]) -> Generator[Bytes]:
    for block in blocks:
        for begin in range(0, block.size, PIECE):
            yield block[begin : begin + PIECE]


def _named(hasher: Any) -> str:
    return "blake3:" + str(hasher.hexdigest())
