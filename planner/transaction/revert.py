"""Take patches back, bit for bit, as one transaction of the same kind as the one that applied them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from planner import fsio
from planner.checkpoint import Checkpoint, open_checkpoint
from planner.errors import LedgerDamaged, NothingToRevert, StorageError
from planner.transaction.history import copy_patch
from planner.transaction.ledger import encode_ledger, ledger_path, read_ledger, write_record
from planner.transaction.progress import Progress, Steps
from planner.transaction.proof import proven
from planner.transaction.stage import exclusive, refuse_unsafe, staged, swap_in
from planner.transaction.state import measure
from planner.transaction.types import Event, Ledger, State
from planner.transaction.way_back import changes_back
from planner.transaction.writing import Changes, fill_stage

__all__ = ["revert"]


def revert(model: Path, *, to: int | None = None, by: str, progress: Progress | None = None) -> Ledger:
    """Take back the last patch, or every patch after patch `to` (0: all of them). Returns the ledger afterwards.

    Raises `NothingToRevert`, `LedgerDamaged` if the weights are not what the ledger says (taking a patch back would
    then produce neither the old weights nor the new), `Locked`, `UnsafeInPlace` or a `StorageError`.
    """
    refuse_unsafe(model)
    with exclusive(model):
        ledger = _required_ledger(model)
        keep = _kept(ledger, to)
        checkpoint = open_checkpoint(model)
        told = Steps(progress, checkpoint.nbytes)
        changes = changes_back(checkpoint, ledger.in_force[keep:])
        fsio.require_space(model.parent, _bytes_needed(checkpoint, changes))
        with staged(model, like=model) as stage:
            try:
                written = fill_stage(checkpoint, stage, changes, share=True, progress=told.step("writing"))
            except LedgerDamaged:
                _refuse_damaged(model, ledger, measure(checkpoint))  # the better reason, if it is one
                raise
            _refuse_damaged(model, ledger, written.before)
            after = proven(checkpoint, stage, written, progress=told.step("verifying"))
            updated = _updated(ledger, keep, after, by)
            for event in ledger.events:
                if event.kind == "applied":
                    copy_patch(model, stage, event.patch, undone=event.patch not in updated.in_force)
            write_record(ledger_path(stage), encode_ledger(updated))
            swap_in(stage, model)
    return updated


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


def _refuse_damaged(model: Path, ledger: Ledger, found: State) -> None:
    wrong = [name for name, digest in ledger.current.tensors.items() if found.tensors.get(name) != digest]
    if wrong or found.fingerprint != ledger.current.fingerprint:
        raise LedgerDamaged(
            f"{model} is not what its ledger says: {', '.join(wrong[:5]) or 'config.json'}",
            hint="`planner verify MODEL` names what differs; put those files back from a copy, then revert",
        )


def _bytes_needed(checkpoint: Checkpoint, changes: Changes) -> int:
    rewritten = {checkpoint.tensors[name].shard for name in changes.tensors} | set(changes.headers)
    needed = 0
    for name in rewritten:
        with fsio.storage_errors(checkpoint.path / name):
            needed += (checkpoint.path / name).stat().st_size
    return needed + 2**20


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
        kind="reverted",
        patch=in_force[-1] if in_force else 0,
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        by=by,
        fingerprint=after.fingerprint,
    )
    return ledger.model_copy(
        update={
            "serial": ledger.serial + 1,
            "current": after,
            "in_force": in_force,
            "events": (*ledger.events, event),
        }
    )
