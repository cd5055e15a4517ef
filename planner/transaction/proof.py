"""Prove a filled stage before it gets a name: what the disk gives back is what was meant, and can be taken back.

Each shard is made durable and dropped from the system's memory, so that it is the disk that answers. One reading does
both: each piece is hashed and, where its tensor changed, taken back with the undo data as the disk gives them, and
hashed again. Where earlier patches changed the tensor as well, it goes back through them to the original, and how far
it is from there is measured.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from planner import fsio
from planner.checkpoint import Checkpoint, Tensor, TensorReader, digest_file, fingerprint_of, open_checkpoint
from planner.dtypes import float_dtype
from planner.errors import CheckpointError, FileUnreadable, LedgerDamaged
from planner.transaction.line import in_line
from planner.transaction.pieces import PIECE, WORTH_THREADS, Bytes, Piece, Pool
from planner.transaction.state import files_of, shard_digest
from planner.transaction.types import State
from planner.transaction.undo.way_back import Layer, piece_count, through
from planner.transaction.writing import Written

__all__ = ["Distances", "Undone", "prove", "prove_ahead", "state_of"]

Progress = Callable[[int], None]


@dataclass
class Distances:
    """How far tensors are from their originals."""

    tensors: Mapping[str, Tensor]
    _sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, now: Bytes, original: Bytes) -> None:
        """Count one piece of a tensor."""
        dtype = float_dtype(self.tensors[name].dtype)
        if dtype is None:
            return
        was = np.asarray(dtype.decode(original.view(dtype.pattern)), np.float64)
        moved = np.asarray(dtype.decode(now.view(dtype.pattern)), np.float64) - was
        sums = self._sums.setdefault(name, [0.0, 0.0])
        sums[0] += float(np.vdot(moved, moved))
        sums[1] += float(np.vdot(was, was))

    def of(self, name: str) -> float | None:
        """‖W - W₀‖F/‖W₀‖F of a tensor; None where W₀ is zero, or not finite, or was never counted."""
        moved, was = self._sums.get(name, (0.0, 0.0))
        found = (moved / was) ** 0.5 if was > 0 else float("nan")
        return found if np.isfinite(found) else None


@dataclass(frozen=True)
class Undone:
    """The undo data of a patch that is about to be committed, and those of the patches before it."""

    layers: Mapping[str, Callable[[], Layer]]
    """Of this patch, for every tensor that it changes."""
    earlier: Mapping[str, Sequence[Callable[[], Layer]]]
    """Of the patches before, newest first."""
    before: Mapping[str, str]
    """Digests of the tensors as they must come back."""
    distances: Distances
    """From the originals, of tensors that earlier patches changed as well."""

    def proving(self, name: str) -> _Proving:
        """What takes the pieces of one tensor."""
        earlier = [layer() for layer in self.earlier.get(name, ())]
        return _Proving(self, name, earlier)


class _Proving:
    """Takes one tensor back, piece after piece."""

    def __init__(self, undone: Undone, name: str, earlier: Sequence[Layer]) -> None:
        self._undone, self._name, self._earlier = undone, name, earlier
        self._layer, self._digest, self._hasher = undone.layers[name](), undone.before[name], blake3()

    def take(self, number: int, now: Bytes, old: Bytes, *, pieces: int) -> None:
        """Take back one piece into `old`. Raises `StorageError` where it is not as it was."""
        try:
            self._layer.back(number, now, old)
            if number + 1 == pieces:
                self._layer.finish(pieces)
        except LedgerDamaged:
            raise fsio.not_as_written(f"undo data of {self._name}") from None
        if self._earlier:
            self._undone.distances.add(self._name, now, through(self._earlier, number, old))

    def hash(self, old: Bytes, *, last: bool) -> None:
        """Count a piece that was taken back. Raises `StorageError` after the last one if they are not as they were."""
        self._hasher.update(old.data)
        if last and "blake3:" + self._hasher.hexdigest() != self._digest:
            raise fsio.not_as_written(f"undo data of {self._name}")


def state_of(stage: Path, written: Written) -> State:
    """The state of the filled stage as it is meant, without reading its weights. Raises `StorageError`."""
    try:
        found = open_checkpoint(stage)
    except (CheckpointError, FileUnreadable) as error:
        raise fsio.not_as_written(error.message) from None
    if wrong := sorted(set(found.tensors) ^ set(written.tensors)):
        raise fsio.not_as_written(", ".join(wrong[:5]))
    tensors = {name: written.tensors[name] for name in found.tensors}
    return State(fingerprint=fingerprint_of(found, tensors), files=dict(written.files), tensors=tensors)


def prove_ahead(pieces: Generator[Piece], nbytes: Mapping[str, int], undone: Undone, progress: Progress) -> None:
    """Prove undo data before anything is overwritten: every piece as it is to be is taken back, and compared.

    `pieces` are those of a pass that changes what `undone` takes back. Raises `StorageError`.
    """
    proving: _Proving | None = None
    pool = Pool()
    with closing(pieces):
        for piece in pieces:
            if piece.changes and piece.new is not None and piece.old is not None:
                if piece.number == 0 or proving is None:
                    proving = undone.proving(piece.tensor)
                back = pool.take()
                old = back[: piece.new.size]
                proving.take(piece.number, piece.new, old, pieces=piece_count(nbytes[piece.tensor]))
                proving.hash(old, last=piece.last)
                pool.give_back(back)
            progress(0 if piece.old is None else piece.old.size)


def prove(stage: Path, written: Written, *, undone: Undone | None = None, progress: Progress | None = None) -> None:
    """Read the filled stage back: it is what was meant, and nothing else. Its shards are durable then.

    With `undone`, every tensor that changed is also taken back and compared with what it was. Raises `StorageError`.
    """
    try:
        found = open_checkpoint(stage)
        with ThreadPoolExecutor(1) as aside:
            ahead = {
                shard.name: aside.submit(_make_durable, stage / shard.name)
                for shard in found.shards
                if shard.name not in written.linked
            }
            try:
                _compare(stage, found, written, undone, ahead, progress or (lambda _: None))
            finally:
                for waiting in ahead.values():
                    waiting.cancel()
    except (CheckpointError, FileUnreadable) as error:
        raise fsio.not_as_written(error.message) from None


def _make_durable(shard: Path) -> None:
    fsio.fsync_file(shard)
    fsio.forget_cached(shard)


def _compare(
    stage: Path,
    found: Checkpoint,
    written: Written,
    undone: Undone | None,
    ahead: Mapping[str, Future[None]],
    progress: Progress,
) -> None:
    shards = {shard.name for shard in found.shards}
    wrong = sorted(set(found.tensors) ^ set(written.tensors))
    names = list(files_of(stage))
    wrong += sorted(set(names) ^ set(written.files))
    for name in names:
        path, meant = stage / name, written.files.get(name)
        with fsio.storage_errors(path):
            state = path.stat()
        if meant is None or (meant.size, meant.mode) != (state.st_size, stat.S_IMODE(state.st_mode)):
            wrong.append(name)
        elif name in written.linked:  # the very file that was read before
            progress(state.st_size)
        elif name in shards:
            ahead[name].result()
            header = found.header_bytes(name)
            if shard_digest(header, _reread(found, name, undone, progress)) != meant.digest:
                wrong.append(name)
        else:
            with fsio.storage_errors(path):
                same = digest_file(path) == meant.digest
            wrong += [] if same else [name]
            progress(state.st_size)
    if wrong:
        raise fsio.not_as_written(", ".join(wrong[:5]))


@dataclass(slots=True)
class _Piece:
    data: NDArray[np.uint8]
    buffer: NDArray[np.uint8]
    proving: _Proving | None
    number: int
    pieces: int
    old: NDArray[np.uint8] | None = None
    """What it is taken back to."""


def _reread(found: Checkpoint, shard: str, undone: Undone | None, progress: Progress) -> list[str]:
    """The digests of a shard's tensors; changed ones are taken back on the way. Raises `StorageError` if that fails."""
    pool = Pool()
    digests: list[str] = []
    entries = found.header(shard).entries

    def pieces() -> Generator[_Piece]:
        with TensorReader(found) as reader:
            for entry in entries:
                proving = undone.proving(entry.name) if undone and entry.name in undone.layers else None
                hasher: Any = blake3()
                count = piece_count(entry.nbytes)
                for number in range(count):
                    buffer = pool.take()
                    data = buffer[: min(PIECE, entry.nbytes - number * PIECE)]
                    reader.read_into(data.data, found.tensors[entry.name], number * PIECE)
                    hasher.update(data.data)  # at once, while what was read is in the cache
                    yield _Piece(data, buffer, proving, number, count)
                digests.append("blake3:" + hasher.hexdigest())

    def take_back(piece: _Piece) -> None:
        if piece.proving is not None:
            piece.old = pool.take()
            piece.proving.take(piece.number, piece.data, piece.old[: piece.data.size], pieces=piece.pieces)

    def compare(piece: _Piece) -> None:
        if piece.proving is not None and piece.old is not None:
            piece.proving.hash(piece.old[: piece.data.size], last=piece.number + 1 == piece.pieces)

    threads = sum(entry.nbytes for entry in entries) >= WORTH_THREADS
    with closing(in_line(pieces(), take_back, compare, threads=threads)) as done:
        for piece in done:
            pool.give_back(piece.buffer, piece.old)
            progress(piece.data.size)
    return digests
