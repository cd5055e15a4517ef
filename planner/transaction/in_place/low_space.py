"""Change a checkpoint in its place, where there is no room for a second one.

The stage holds everything of the new state but the bytes of the weights: its shards are those of the checkpoint under
a second name. Undo data are written and proven first, then a journal. Then the checkpoint is moved aside, so that
nobody can read it half changed, and its bytes are overwritten, a chunk at a time, each by way of a slot that says what
it was. The one step that commits gives the stage the checkpoint's name.

Interrupted anywhere before that step, the checkpoint's name is free or has the old state, and `settle` makes it whole:
each piece on the disk is either as it was, or as it is to be and can be taken back, or it is in the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from planner import fsio
from planner.checkpoint import Checkpoint, TensorReader, digest_bytes, open_checkpoint, set_aside
from planner.errors import LedgerDamaged, PlannerError, RecoveryBlocked, StorageError, UnsafeInPlace
from planner.transaction.in_place.journal import Journal, PieceDigests, open_journal, slot_of, write_journal
from planner.transaction.in_place.readers import refuse_in_use
from planner.transaction.in_place.slot import Chunk, room_of
from planner.transaction.ledger import ledger_path
from planner.transaction.pieces import PIECE, Bytes, Changes, Piece
from planner.transaction.sighting import Sighting
from planner.transaction.stage import finish_folders, is_stage, journal_folder
from planner.transaction.undo.way_back import Layer, through, way_back

__all__ = ["CHUNK", "overwritten", "refuse_other_sizes", "settle", "slot_bytes"]

CHUNK = 16
"""Pieces that go through the slot at once, 8 MiB."""

Progress = Callable[[int], None]


def refuse_other_sizes(changes: Changes) -> None:
    """Raise `UnsafeInPlace` for changes after which a byte lies elsewhere."""
    if changes.headers or changes.added or changes.removed:
        raise UnsafeInPlace(
            "the plan adds or removes tensors, which moves the others", hint="leave --low-space out, or use --out DIR"
        )


def slot_bytes(checkpoint: Checkpoint, tensors: Iterable[str]) -> int:
    """How large a slot has to be for changes of these tensors."""
    largest = sum(min(checkpoint.tensors[name].nbytes, CHUNK * PIECE) for name in tensors)
    return room_of(min(largest, CHUNK * PIECE), _MOST)


def overwritten(
    final: Path,
    stage: Path,
    journal: Journal,
    digests: PieceDigests,
    seen: Sighting,
    *,
    forwards: Callable[[Checkpoint], Iterator[Generator[Piece]]] | None,
    prove: Callable[[], None],
    progress: Progress,
) -> None:
    """Overwrite the checkpoint `final` with what the stage stands for, and commit.

    `forwards` gives the passes over the shards of the checkpoint, moved aside, that make the new bytes; without it the
    new bytes are the old ones of the journal's patches. `prove` reads the result back. Everything else has to be as it
    was `seen`. What goes wrong before the commit is taken back. Raises `FileInUse`, `NoSpace`, another `StorageError`,
    or `RecoveryBlocked` if that failed.
    """
    aside, folder = set_aside(final), journal_folder(final)
    checkpoint = open_checkpoint(final)
    shards = [final / shard.name for shard in checkpoint.shards]
    refuse_in_use(shards)
    try:
        write_journal(folder, journal, digests, slot=slot_bytes(checkpoint, dict(digests.tensors)))
        finish_folders(stage, final)
        seen.refuse_changed(final)
        fsio.publish_folder(final, aside)
        refuse_in_use([aside / shard.name for shard in shards])  # who opened it before it was moved
        if forwards:
            _forth(open_checkpoint(aside), folder, digests, forwards, progress)
        else:
            _give_back(aside, aside, folder, journal, digests, progress)
        prove()
        seen.refuse_changed(aside, ours=[shard.name for shard in checkpoint.shards])
        fsio.publish_folder(stage, final)
    except BaseException as error:
        _settled_after(final, error)
        if journal.way == "revert" and _is_committed(final, journal):
            return  # what stopped it did not stop the second try, which went on to the end
        raise
    with suppress(StorageError):  # the next command does it: what is committed must not look failed
        try:
            _tidy(final)
        except KeyboardInterrupt:
            _tidy(final)
            raise


def settle(final: Path, *, progress: Progress | None = None) -> bool:
    """Make whole what an interrupted change in place left of the checkpoint `final`. Only under its lock.

    Returns whether there was anything to do. Raises `LedgerDamaged`, `RecoveryBlocked` or another `StorageError`;
    then nothing is lost, and it can be called again.
    """
    folder, aside = journal_folder(final), set_aside(final)
    if not folder.exists() and not aside.exists():
        return False
    if aside.exists():
        journal, digests = open_journal(folder)
        stage = _stage_of(final, journal)
        if not final.exists() and not stage.exists():
            _refuse_unfinished(aside, stage, journal, digests)
        elif not final.exists():
            records = stage if journal.way == "apply" else aside
            _give_back(aside, records, folder, journal, digests, progress or (lambda _: None))
            if journal.way == "apply":
                fsio.publish_folder(aside, final)
            else:
                _refuse_other_ledger(stage, journal)
                fsio.publish_folder(stage, final)
        elif not _is_committed(final, journal):
            raise RecoveryBlocked(
                f"{final} was changed in place and interrupted, and now another folder has its name",
                hint=f"move that folder away, then run `planner recover {final}` again",
            )
    _tidy(final)
    return True


def _stage_of(final: Path, journal: Journal) -> Path:
    """The stage that the journal names: nothing else beside the checkpoint may become it. Raises `LedgerDamaged`."""
    stage = final.parent / journal.stage
    if not is_stage(journal.stage, final) or stage.is_symlink():
        raise LedgerDamaged(
            f"the journal of {final} names {journal.stage!r}, which is no stage of it",
            hint=f"if you have not made {journal_folder(final)} yourself, remove it and restore the checkpoint",
        )
    return stage


def _refuse_unfinished(aside: Path, stage: Path, journal: Journal, digests: PieceDigests) -> None:
    """Raise `RecoveryBlocked` unless all was done to what is aside, and it has another name as well.

    Then the change was committed, and the checkpoint was moved before the rest could be tidied up.
    """
    checkpoint = open_checkpoint(aside)
    with fsio.storage_errors(aside):
        done = all((aside / shard.name).stat().st_nlink > 1 for shard in checkpoint.shards)
    with TensorReader(checkpoint) as reader:
        for name, count in journal.tensors if done else ():
            tensor = checkpoint.tensors.get(name)
            if tensor is None:
                done = False
                break
            for number in range(count):
                now = np.empty(min(PIECE, tensor.nbytes - number * PIECE), np.uint8)
                reader.read_into(now.data, tensor, number * PIECE)
                done = done and PieceDigests.digest(now) == digests.of(name, number)[journal.way == "revert"]
    if not done:
        raise RecoveryBlocked(
            f"{stage} is gone, and what is left in {aside} is half changed",
            hint=f"put {stage.name} back where it was, then run the command again",
        )


def _refuse_other_ledger(stage: Path, journal: Journal) -> None:
    if not _is_committed(stage, journal):
        raise LedgerDamaged(
            f"{stage} is not what the journal was written for", hint="nothing was changed; restore a backup"
        )


def _settled_after(final: Path, error: BaseException) -> None:
    """Take back what was done before `error`. Raises `RecoveryBlocked` if that cannot be done now."""
    reason = error.message if isinstance(error, PlannerError) else type(error).__name__
    try:
        settle(final)
    except RecoveryBlocked:
        raise
    except (PlannerError, KeyboardInterrupt) as failed:
        why = failed.message if isinstance(failed, PlannerError) else "that was stopped as well"
        raise RecoveryBlocked(
            f"the change of {final} was stopped ({reason}) and is not taken back yet: {why}",
            hint=f"nothing is lost; when the disk can be written again, run `planner recover {final}`",
        ) from None


def _tidy(final: Path) -> None:
    """Remove what is needed no longer: the journal last, and only when it is certain that nothing is aside."""
    fsio.remove_tree(set_aside(final))
    fsio.fsync_folder(final.parent)
    fsio.remove_tree(journal_folder(final))


def _is_committed(final: Path, journal: Journal) -> bool:
    try:
        return digest_bytes(ledger_path(final).read_bytes()) == journal.ledger
    except OSError:
        return False


def _forth(
    checkpoint: Checkpoint,
    folder: Path,
    digests: PieceDigests,
    forwards: Callable[[Checkpoint], Iterator[Generator[Piece]]],
    progress: Progress,
) -> None:
    """Write the new bytes. What is made of bytes that were overwritten already would not have the digest it has to."""
    overwriting = _Overwriting(checkpoint, folder, digests)
    for pieces in forwards(checkpoint):
        with closing(pieces):
            for piece in pieces:
                if piece.changes and piece.old is not None and piece.new is not None:
                    if digests.pair(piece.new, piece.old) != b"".join(digests.of(piece.tensor, piece.number)):
                        raise fsio.not_as_written(f"{piece.tensor} was changed by somebody else, or read twice")
                    overwriting.add(piece.tensor, piece.number, kept=piece.old, new=piece.new)
                progress(0 if piece.old is None else piece.old.size)
    overwriting.flush()


def _give_back(
    tree: Path, records: Path, folder: Path, journal: Journal, digests: PieceDigests, progress: Progress
) -> None:
    """Write the old bytes, wherever they are not yet, from undo data in `records` and from the slot."""
    checkpoint = open_checkpoint(tree)
    way = way_back(records, checkpoint, journal.patches)
    kept = slot_of(folder).kept()
    _put_back(checkpoint, journal, digests, kept)
    overwriting = _Overwriting(checkpoint, folder, digests)
    with TensorReader(checkpoint) as reader:
        for index, (name, count) in enumerate(journal.tensors):
            if name not in checkpoint.tensors or name not in way.layers:
                raise LedgerDamaged(f"the journal speaks of {name}, which is not here", hint="restore a backup")
            tensor, layers = checkpoint.tensors[name], [layer() for layer in way.layers[name]]
            for number in range(count):
                now = np.empty(min(PIECE, tensor.nbytes - number * PIECE), np.uint8)
                reader.read_into(now.data, tensor, number * PIECE)
                old = _old(now, layers, number, digests.of(name, number), kept.get((index, number)))
                if old is None:
                    raise LedgerDamaged(
                        f"{name} is neither what it was nor what it was to be, from byte {number * PIECE:,} on",
                        hint="nothing more is changed; check the disk, and restore this checkpoint from a copy",
                    )
                if old is not now:
                    overwriting.add(name, number, kept=old, new=old)
                progress(now.size)
    overwriting.flush()


def _put_back(
    checkpoint: Checkpoint, journal: Journal, digests: PieceDigests, kept: Mapping[tuple[int, int], bytes]
) -> None:
    """Put what the slot has in its place, durably, before the slot is used again: it may be nowhere else."""
    places = []
    for (index, number), content in kept.items():
        name, count = journal.tensors[index] if index < len(journal.tensors) else ("", 0)
        if number < count and name in checkpoint.tensors:
            _, meant = digests.of(name, number)
            if PieceDigests.digest(np.frombuffer(content, np.uint8)) == meant:
                places.append((name, number, content))
    _put(checkpoint, places)


def _put(checkpoint: Checkpoint, places: Sequence[tuple[str, int, bytes]]) -> None:
    """Overwrite pieces, and read them back from the disk: what the slot has of them is about to be given up.

    Raises a `StorageError`.
    """
    by_shard: dict[str, list[tuple[int, bytes]]] = {}
    for name, number, content in places:
        tensor = checkpoint.tensors[name]
        by_shard.setdefault(tensor.shard, []).append((tensor.begin + number * PIECE, content))
    for shard, there in by_shard.items():
        path = checkpoint.path / shard
        with fsio.open_in_place(path) as descriptor:
            for place, content in there:
                fsio.overwrite(descriptor, content, place, durable=False)
        fsio.fsync_file(path)
        fsio.forget_cached(path)
        with fsio.storage_errors(path), path.open("rb", buffering=0) as file:
            for place, content in there:
                file.seek(place)
                if file.read(len(content)) != content:
                    raise fsio.not_as_written(f"{path}, from byte {place:,} on")


def _old(
    now: Bytes, layers: Sequence[Layer], number: int, digests: tuple[bytes, bytes], slot: bytes | None
) -> Bytes | None:
    """The old bytes of a piece: `now` itself where it has them already, None where they cannot be had."""
    patched, meant = digests
    found = PieceDigests.digest(now)
    if found == meant:
        return now
    if found == patched:
        old = through(layers, number, now)
    elif slot is not None and len(slot) == now.size:
        old = np.frombuffer(slot, np.uint8)
    else:
        return None
    return old if PieceDigests.digest(old) == meant else None


class _Overwriting:
    """Collects pieces to a chunk, and puts each chunk over its place by way of the slot."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, digests: PieceDigests) -> None:
        self._checkpoint, self._slot, self._digests = checkpoint, slot_of(folder), digests
        self._kept: list[Chunk] = []
        self._new: list[tuple[str, int, bytes]] = []
        self._size = 0

    def add(self, tensor: str, number: int, *, kept: Bytes, new: Bytes) -> None:
        """Put `new` in the place of a piece; `kept` is what it is to be if that is interrupted."""
        content = new.tobytes()
        self._kept.append(Chunk(self._digests.index(tensor), number, content if kept is new else kept.tobytes()))
        self._new.append((tensor, number, content))
        self._size += new.size
        if self._size + PIECE > CHUNK * PIECE or len(self._new) == _MOST:
            self.flush()

    def flush(self) -> None:
        """Write the chunk. Raises a `StorageError`."""
        if not self._new:
            return
        self._slot.put(self._kept)
        _put(self._checkpoint, self._new)
        self._kept, self._new, self._size = [], [], 0


_MOST = 4096
"""Pieces in a chunk: of a model with many small tensors."""
