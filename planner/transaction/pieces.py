"""One pass over a shard, piece by piece: each is read, hashed, changed, hashed again, and framed for the way back.

What the tensors were, and what they become, is known at the end of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from planner.checkpoint import Checkpoint, TensorReader
from planner.dtypes import BITS
from planner.transaction.line import in_line
from planner.transaction.undo.residuals import PIECE, Coding

__all__ = [
    "PIECE",
    "WORTH_THREADS",
    "Added",
    "Bytes",
    "Change",
    "Changes",
    "Content",
    "Done",
    "Outcome",
    "Pass",
    "Piece",
    "Pool",
]

Bytes = NDArray[np.uint8]
Content = Callable[[], Iterator[Bytes]]
"""Gives the new bytes of one tensor, in order, in pieces."""

WORTH_THREADS = 16 * 2**20


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
    modifications: tuple[str, ...] = ()
    """Ids of the modifications that it comes from."""


@dataclass(frozen=True)
class Changes:
    """Everything that the new state has and the old one has not."""

    tensors: Mapping[str, Change] = field(default_factory=dict)
    added: Mapping[str, Sequence[Added]] = field(default_factory=dict)
    """By shard."""
    removed: frozenset[str] = frozenset()
    """Tensors that the new state has not."""
    headers: Mapping[str, bytes] = field(default_factory=dict)
    """New ones, length included, by shard."""
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    """Small files with other content; None for one that goes away."""

    def rewrites(self, checkpoint: Checkpoint, shard: str) -> bool:
        """Whether any byte of a shard becomes another."""
        entries = checkpoint.header(shard).entries
        return (
            shard in self.headers
            or shard in self.added
            or any(entry.name in self.tensors or entry.name in self.removed for entry in entries)
        )


@dataclass
class Outcome:
    """What was done to a tensor that changed or is new."""

    digest: str
    changed_elements: int


Done = Callable[["Piece"], None]
"""Called with each piece of a tensor that changes, in threads of the pass: with two different ones at once."""


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
    rooms: tuple[Bytes, Bytes] | None = None
    """For the ranks of two pieces, one with an even and one with an odd number."""


@dataclass(slots=True)
class Piece:
    """`PIECE` bytes of a tensor, or what is left of it."""

    work: _Work
    number: int
    old: Bytes | None
    """As they are; None for a tensor that is added."""
    new: Bytes | None
    """As they are to be; None for a tensor that is removed."""
    buffers: list[Bytes]
    last: bool
    changed: int = 0
    ranks: bytes | None = None
    """Which old pattern each element was, where a table made several the same (`residuals`)."""
    outcome: Any = None
    """What `Done` made of it."""

    @property
    def tensor(self) -> str:
        """The tensor it is of."""
        return self.work.name

    @property
    def begin(self) -> int:
        """Its place in the tensor, in bytes."""
        return self.number * PIECE

    @property
    def changes(self) -> bool:
        """Whether its tensor gets other bytes."""
        return self.work.change is not None


class Pass:
    """Passes over the shards of a checkpoint, with changes; what was read and what came of it is collected here."""

    def __init__(
        self, checkpoint: Checkpoint, changes: Changes, *, ranks: bool = False, done: Done | None = None
    ) -> None:
        """With `ranks`, pieces changed by a table come with theirs."""
        self._checkpoint, self._changes, self._ranks, self._done = checkpoint, changes, ranks, done
        self._pool = Pool()
        self.old_digests: dict[str, str] = {}
        self.new_digests: dict[str, str] = {}
        """Of every tensor of the new state."""
        self.outcomes: dict[str, Outcome] = {}

    def over(self, shard: str) -> Generator[Piece]:
        """Every piece of a shard, in order; its arrays are good until the next one. To be closed (`closing`)."""
        threads = sum(entry.nbytes for entry in self._checkpoint.header(shard).entries) >= WORTH_THREADS
        steps = (self._transform_even, self._transform_odd, self._hash_new)
        with closing(in_line(self._pieces(shard), *steps, threads=threads)) as line:
            for piece in line:
                yield piece
                self._count(piece)

    def _pieces(self, shard: str) -> Generator[Piece]:
        """What there is to do, with the old bytes read."""
        with TensorReader(self._checkpoint) as reader:
            for entry in self._checkpoint.header(shard).entries:
                change = self._changes.tensors.get(entry.name)
                removed = entry.name in self._changes.removed
                work = _Work(entry.name, entry.nbytes, max(BITS[entry.dtype] // 8, 1), change, old=blake3())
                work.new = blake3() if change else None
                if change and change.coding and self._ranks:
                    work.rooms = _rooms(change.coding, entry.nbytes)
                if change and change.content:
                    yield from self._with_content(work, change.content, reader)
                    continue
                for number, offset in enumerate(range(0, max(entry.nbytes, 1), PIECE)):
                    buffer = self._pool.take()
                    old = buffer[: min(PIECE, entry.nbytes - offset)]
                    reader.read_into(old.data, self._checkpoint.tensors[entry.name], offset)
                    same = change is None and not removed
                    last = offset + PIECE >= entry.nbytes
                    piece = Piece(work, number, old, old if same else None, [buffer], last)
                    self._hash_old(piece)  # at once, while what was read is in the cache
                    yield piece
            for added in self._changes.added.get(shard, ()):
                work = _Work(added.name, added.nbytes, 1, None, new=blake3(), changed=added.elements)
                yield from self._with_content(work, added.content, None)

    def _with_content(self, work: _Work, content: Content, reader: TensorReader | None) -> Generator[Piece]:
        done = 0
        with closing(_cut(content())) as parts:
            for number, new in enumerate(parts):
                buffer = old = None
                if reader and done + new.size <= work.nbytes:
                    buffer = self._pool.take()
                    old = buffer[: new.size]
                    reader.read_into(old.data, self._checkpoint.tensors[work.name], done)
                done += new.size
                piece = Piece(work, number, old, new, [] if buffer is None else [buffer], last=done == work.nbytes)
                self._hash_old(piece)
                yield piece
        if done != work.nbytes:
            raise ValueError(f"{work.name} has {work.nbytes:,} bytes; {done:,} came")
        if not done:
            nothing = np.empty(0, np.uint8)
            yield Piece(work, 0, nothing, nothing, [], last=True)

    def _hash_old(self, piece: Piece) -> None:
        if piece.old is not None and piece.work.old is not None:
            piece.work.old.update(piece.old)

    # The slowest step by far where everything is changed; what two pieces have in common is touched by nobody there.
    def _transform_even(self, piece: Piece) -> None:
        if not piece.number % 2:
            self._transform(piece)

    def _transform_odd(self, piece: Piece) -> None:
        if piece.number % 2:
            self._transform(piece)

    def _transform(self, piece: Piece) -> None:
        work, change = piece.work, piece.work.change
        if change is None or piece.old is None:
            return
        if change.coding is None:
            if piece.new is not None:
                kind = f"<u{work.unit}"
                piece.changed = int(np.count_nonzero(piece.old.view(kind) != piece.new.view(kind)))
        else:
            self._look_up(piece, change.coding)
        if self._done and piece.new is not None:
            self._done(piece)

    def _look_up(self, piece: Piece, coding: Coding) -> None:
        assert piece.old is not None
        buffer = self._pool.take()
        piece.buffers.append(buffer)
        piece.new = buffer[: piece.old.size]
        old, new = piece.old.view(coding.pattern), piece.new.view(coding.pattern)
        room = piece.work.rooms[piece.number % 2] if piece.work.rooms else None
        piece.changed, size = coding.forth(old, new, room)
        if room is not None:
            piece.ranks = room[:size].tobytes()

    def _hash_new(self, piece: Piece) -> None:
        if piece.new is not None and piece.work.new is not None:
            piece.work.new.update(piece.new)

    def _count(self, piece: Piece) -> None:
        """What is left to do once a piece was used."""
        work = piece.work
        work.changed += piece.changed
        if piece.last:
            if work.old is not None:
                self.old_digests[work.name] = _named(work.old)
            if work.new is not None:
                self.new_digests[work.name] = _named(work.new)
                self.outcomes[work.name] = Outcome(self.new_digests[work.name], work.changed)
            elif work.name not in self._changes.removed:
                self.new_digests[work.name] = self.old_digests[work.name]
            work.old = work.new = work.rooms = None  # 250,000 hashers would take half a GiB
        self._pool.give_back(*piece.buffers)


def _cut(blocks: Iterator[Bytes]) -> Generator[Bytes]:
    """The same bytes, `PIECE` at a time, however they come."""
    waiting: Bytes | None = None
    filled = 0
    for block in blocks:
        begin = 0
        while begin < block.size:
            if waiting is None and block.size - begin >= PIECE:
                yield block[begin : begin + PIECE]
                begin += PIECE
                continue
            if waiting is None:
                waiting, filled = np.empty(PIECE, np.uint8), 0
            count = min(PIECE - filled, block.size - begin)
            waiting[filled : filled + count] = block[begin : begin + count]
            begin, filled = begin + count, filled + count
            if filled == PIECE:
                yield waiting
                waiting = None
    if waiting is not None:
        yield waiting[:filled]


def _rooms(coding: Coding, nbytes: int) -> tuple[Bytes, Bytes]:
    room = min(coding.room, 2 * nbytes + 8)
    return np.empty(room, np.uint8), np.empty(room if nbytes > PIECE else 0, np.uint8)


def _named(hasher: Any) -> str:
    return "blake3:" + str(hasher.hexdigest())
