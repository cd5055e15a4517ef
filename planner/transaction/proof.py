"""Prove a filled stage before it gets a name: what the disk gives back is what was meant, and can be taken back.

One reading of the stage does both: each piece of a shard is hashed and, where its tensor is coded, taken back with the
residual as the disk gives it, and hashed again. Meanwhile the disk makes the shards durable.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from planner import fsio
from planner.checkpoint import Checkpoint, TensorReader, digest_file, fingerprint_of, open_checkpoint
from planner.errors import CheckpointError, FileUnreadable, LedgerDamaged
from planner.transaction.line import in_line, side_by_side
from planner.transaction.residuals import PIECE, Coding
from planner.transaction.state import files_of, shard_digest
from planner.transaction.types import Residual, State
from planner.transaction.undo import Backwards, UndoData
from planner.transaction.writing import WORTH_THREADS, Pool, Written

__all__ = ["Undone", "proven"]

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Undone:
    """The undo data of a patch that is about to be committed."""

    data: UndoData
    originals: Sequence[str]
    """Tensors that it holds as they were."""
    residuals: Mapping[str, Residual]
    """Tensors that are got back from their new bytes."""
    codings: Mapping[str, Coding]
    """The tables of the latter."""


def proven(
    checkpoint: Checkpoint,
    stage: Path,
    written: Written,
    *,
    undone: Undone | None = None,
    progress: Progress | None = None,
) -> State:
    """The state of the filled stage, read back: what was meant, and nothing else. Its shards are durable then.

    With `undone`, every tensor that changed is also taken back and compared with what it was. Raises `StorageError`.
    """
    shards = [stage / shard.name for shard in checkpoint.shards if shard.name not in written.linked]

    def make_durable() -> None:
        for path in shards:
            fsio.fsync_file(path)

    with ExitStack() as stack:
        stack.callback(side_by_side(make_durable))
        try:
            after = _compared(stage, written, undone, progress or (lambda _: None))
        except (CheckpointError, FileUnreadable) as error:
            raise fsio.not_as_written(error.message) from None
        if undone:
            _prove_originals(undone, written)
    return after


def _compared(stage: Path, written: Written, undone: Undone | None, progress: Progress) -> State:
    found = open_checkpoint(stage)
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
            header = found.header_bytes(name)
            if shard_digest(header, _reread(found, name, written, undone, progress)) != meant.digest:
                wrong.append(name)
        else:
            with fsio.storage_errors(path):
                same = digest_file(path) == meant.digest
            wrong += [] if same else [name]
            progress(state.st_size)
    if wrong:
        raise fsio.not_as_written(", ".join(wrong[:5]))
    tensors = {name: written.tensors[name] for name in found.tensors}
    return State(fingerprint=fingerprint_of(found, tensors), files=dict(written.files), tensors=tensors)


@dataclass(slots=True)
class _Back:
    """A tensor that is taken back as it is read."""

    name: str
    backwards: Backwards
    hasher: Any


@dataclass(slots=True)
class _Piece:
    data: NDArray[np.uint8]
    buffer: NDArray[np.uint8]
    back: _Back | None
    last: bool
    old: NDArray[np.uint8] | None = None
    """What it is taken back to."""


def _reread(found: Checkpoint, shard: str, written: Written, undone: Undone | None, progress: Progress) -> list[str]:
    """The digests of a shard's tensors; coded ones are taken back on the way. Raises `StorageError` if that fails."""
    pool = Pool()
    digests: list[str] = []
    entries = found.header(shard).entries

    def pieces() -> Generator[_Piece]:
        with TensorReader(found) as reader:
            for entry in entries:
                back = None
                if undone and entry.name in undone.residuals:
                    residual, coding = undone.residuals[entry.name], undone.codings[entry.name]
                    back = _Back(entry.name, Backwards(undone.data, residual, coding), blake3())
                hasher = blake3()
                for offset in range(0, max(entry.nbytes, 1), PIECE):
                    buffer = pool.take()
                    data = buffer[: min(PIECE, entry.nbytes - offset)]
                    reader.read_into(data.data, found.tensors[entry.name], offset)
                    hasher.update(data.data)  # at once, while what was read is in the cache
                    yield _Piece(data, buffer, back, offset + PIECE >= entry.nbytes)
                digests.append("blake3:" + hasher.hexdigest())

    def take_back(piece: _Piece) -> None:
        if piece.back is None:
            return
        piece.old = pool.take()
        try:
            piece.back.backwards.take_back(piece.data, piece.old[: piece.data.size])
            if piece.last:
                piece.back.backwards.finish()
        except LedgerDamaged:
            raise fsio.not_as_written(f"undo data of {piece.back.name}") from None

    def compare(piece: _Piece) -> None:
        if piece.back is None or piece.old is None:
            return
        piece.back.hasher.update(piece.old[: piece.data.size])
        if piece.last and "blake3:" + piece.back.hasher.hexdigest() != written.before.tensors[piece.back.name]:
            raise fsio.not_as_written(f"undo data of {piece.back.name}")

    threads = sum(entry.nbytes for entry in entries) >= WORTH_THREADS
    with closing(in_line(pieces(), take_back, compare, threads=threads)) as done:
        for piece in done:
            pool.give_back(piece.buffer, piece.old)
            progress(piece.data.size)
    return digests


def _prove_originals(undone: Undone, written: Written) -> None:
    for name in undone.originals:
        hasher = blake3()
        with suppress(LedgerDamaged):
            for chunk in undone.data.chunks(name):
                hasher.update(chunk)
        if "blake3:" + hasher.hexdigest() != written.before.tensors[name]:
            raise fsio.not_as_written(f"undo data of {name}")
