"""Take patches back, bit for bit, as one transaction of the same kind as the one that applied them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from planner import fsio
from planner.checkpoint import Checkpoint, digest_bytes, open_checkpoint
from planner.errors import LedgerDamaged, NothingToRevert, StorageError, UnsafeInPlace
from planner.transaction.history import copy_patch
from planner.transaction.in_place.journal import Journal, PieceDigests
from planner.transaction.in_place.low_space import overwritten, refuse_other_sizes, slot_bytes
from planner.transaction.ledger import encode_ledger, ledger_path, read_ledger, reserve_path, write_record
from planner.transaction.pieces import Changes, Piece
from planner.transaction.places import refuse_in_place, refuse_linked, refuse_special_modes
from planner.transaction.progress import Progress, Steps
from planner.transaction.proof import prove, state_of
from planner.transaction.record import now
from planner.transaction.recorded import (
    carried_over,
    left_so,
    originals_kept,
    refuse_damaged,
    refuse_damaged_records,
)
from planner.transaction.seal import sealed
from planner.transaction.sighting import Sighting
from planner.transaction.stage import own_name, require_exchange, staged, swap_in
from planner.transaction.state import measure
from planner.transaction.types import Event, Ledger, State
from planner.transaction.undo.replaced import refuse_edited
from planner.transaction.undo.way_back import WayBack, way_back
from planner.transaction.writer import exclusive
from planner.transaction.writing import fill_stage, new_size

__all__ = ["revert"]


def revert(
    model: Path,
    *,
    to: int | None = None,
    by: str,
    low_space: bool = False,
    left: Callable[[tuple[str, ...]], None] | None = None,
    progress: Progress | None = None,
) -> Ledger:
    """Take back the last patch, or every patch after patch `to` (0: all of them). Returns the ledger afterwards.

    The space of the stage is reserved before its first byte. With `low_space` there is no second copy of the weights:
    `model` is moved aside, overwritten in its place under a journal, and put back; room for that was reserved when a
    patch was applied so. In the end `left` is told the files that were not as the ledger says and no patch had
    replaced: they are left so, and the ledger keeps what it said of them.

    Raises `NothingToRevert`, `LedgerDamaged` if the weights are not what the ledger says (taking a patch back would
    then produce neither the old weights nor the new), if undo data are not what they were or if a small file was
    edited that would be replaced, `Locked`, `UnsafeInPlace`, `FileInUse` or a `StorageError`.
    """
    model = own_name(model)
    refuse_in_place(model, locked=False, reverting=True)
    if low_space:
        refuse_special_modes(model)
    with exclusive(model):
        refuse_in_place(model, reverting=True)
        refuse_linked(model, reverting=True)
        ledger = _required_ledger(model)
        keep = _kept(ledger, to)
        seen = Sighting.of(model)
        checkpoint = open_checkpoint(model)
        patches = ledger.in_force[keep:]
        way = way_back(model, checkpoint, patches)
        refuse_damaged_records(model, ledger, patches)
        changes = way.changes(checkpoint)
        refuse_edited(checkpoint, way.replaced)
        if low_space:
            _refuse_sequential(way, changes)
            fsio.remove_file(reserve_path(model))
        needed = _bytes_needed(checkpoint, changes, low_space=low_space)
        otherwise = (
            "free it elsewhere" if low_space else "change the weights in their place: `planner revert --low-space`"
        )
        fsio.require_space(model.parent, needed, otherwise=otherwise)
        with staged(model) as stage:
            if not low_space:
                require_exchange(stage)
            told, digests = Steps(progress, checkpoint.nbytes), PieceDigests()
            try:
                written = fill_stage(
                    checkpoint,
                    stage,
                    changes,
                    share=True,
                    low_space=low_space,
                    done=_digest if low_space else None,
                    keep=partial(_keep, digests) if low_space else None,
                    progress=told.step("writing"),
                )
            except LedgerDamaged:
                refuse_damaged(model, ledger, measure(checkpoint))  # the better reason, if it is one
                raise
            refuse_damaged(model, ledger, written.before)
            after = state_of(stage, written)
            said = _said(ledger, keep, checkpoint, changes, written.before, after)
            updated = sealed(_updated(ledger, keep, after, by).model_copy(update={"current": said}), follows=ledger)
            if not low_space:
                prove(stage, written, progress=told.step("verifying"))
            for event in ledger.events:
                if event.kind == "applied":
                    copy_patch(model, stage, event.patch, undone=event.patch not in updated.in_force)
            content = encode_ledger(updated)
            write_record(ledger_path(stage), content)
            if low_space:
                journal = Journal(
                    way="revert",
                    stage=stage.name,
                    patches=patches,
                    ledger=digest_bytes(content),
                    tensors=tuple(digests.tensors),
                    pieces=digest_bytes(bytes(digests.content)),
                )
                overwritten(
                    model,
                    stage,
                    journal,
                    digests,
                    seen,
                    forwards=None,
                    prove=partial(prove, stage, written, progress=told.step("verifying")),
                    progress=told.step("overwriting"),
                )
            else:
                swap_in(stage, model, seen)
    if left:
        left(left_so(said, after))
    return updated


def _digest(piece: Piece) -> None:
    """In a pass that goes back, the bytes there are are the patched ones."""
    assert piece.old is not None
    assert piece.new is not None
    piece.outcome = PieceDigests.pair(piece.old, piece.new)


def _keep(digests: PieceDigests, piece: Piece) -> None:
    digests.add(piece.tensor, piece.number, piece.outcome)


def _refuse_sequential(way: WayBack, changes: Changes) -> None:
    refuse_other_sizes(changes)
    if not all(layer().in_any_order for layers in way.layers.values() for layer in layers):
        raise UnsafeInPlace(
            "one of the patches was applied by an earlier version, whose undo data cannot be used piece by piece",
            hint="leave --low-space out",
        )


def _required_ledger(model: Path) -> Ledger:
    ledger = read_ledger(model)
    if ledger is None or not ledger.in_force:
        raise NothingToRevert(f"no patch is in force on {model}", hint="`planner log MODEL` shows its history")
    return ledger


def _kept(ledger: Ledger, to: int | None) -> int:
    """How many of the patches in force stay."""
    if to is None:
        return len(ledger.in_force) - 1
    if to == 0:
        return 0
    if to not in ledger.in_force:
        there = ", ".join(map(str, ledger.in_force))
        raise NothingToRevert(f"patch {to} is not in force", hint=f"in force: {there}; --to 0 is the original")
    keep = ledger.in_force.index(to) + 1
    if keep == len(ledger.in_force):
        raise NothingToRevert(f"patch {to} is the last one already", hint="`planner log MODEL` shows the history")
    return keep


def _said(ledger: Ledger, keep: int, checkpoint: Checkpoint, changes: Changes, before: State, after: State) -> State:
    """What the ledger is to say that there is now."""
    rewritten = {shard.name for shard in checkpoint.shards if changes.rewrites(checkpoint, shard.name)}
    said = carried_over(ledger, before, after, rewritten | changes.files.keys())
    return said if keep else originals_kept(ledger, said, changes.headers.keys() | changes.files.keys())


def _bytes_needed(checkpoint: Checkpoint, changes: Changes, *, low_space: bool) -> int:
    shards = [shard.name for shard in checkpoint.shards if changes.rewrites(checkpoint, shard.name)]
    with fsio.storage_errors(checkpoint.path):
        records = 3 * ledger_path(checkpoint.path).stat().st_size + 2**16
    records += sum(len(content) for content in changes.files.values() if content)
    if low_space:
        return slot_bytes(checkpoint, changes.tensors) + records
    return sum(new_size(checkpoint, changes, name) for name in shards) + records


def _updated(ledger: Ledger, keep: int, after: State, by: str) -> Ledger:
    in_force = ledger.in_force[:keep]
    expected = ledger.original.fingerprint
    for event in ledger.events:
        if in_force and event.kind == "applied" and event.patch == in_force[-1]:
            expected = event.fingerprint
    if after.fingerprint != expected:
        raise StorageError(
            "the restored weights are not the original ones", hint="nothing was changed; run `planner verify MODEL`"
        )
    event = Event(
        kind="reverted", patch=in_force[-1] if in_force else 0, at=now(), by=by, fingerprint=after.fingerprint
    )
    return ledger.model_copy(
        update={
            "serial": ledger.serial + 1,
            "current": after,
            "in_force": in_force,
            "reserve": 0,
            "events": (*ledger.events, event),
        }
    )
