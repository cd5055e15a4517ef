"""Hold a checkpoint to what its ledger recorded, and see to it that the next ledger does not take damage for truth.

A transaction measures everything that it finds. What it did not write itself is not thereby as it should be: a file
that was damaged before keeps the entry that the ledger had of it, so that `verify` goes on naming it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from planner import fsio
from planner.checkpoint import digest_file
from planner.errors import LedgerDamaged
from planner.transaction.ledger import RECEIPT, UNDO, patch_folder
from planner.transaction.seal import seal_holds
from planner.transaction.state import SHARD
from planner.transaction.types import FileState, Ledger, State

__all__ = [
    "carried_over",
    "is_as_recorded",
    "is_file_of",
    "left_so",
    "originals_kept",
    "refuse_damaged",
    "refuse_damaged_records",
]


def is_as_recorded(folder: Path, name: str, found: State, meant: FileState) -> bool:
    """Whether a file is as it should be; a ledger of an earlier version has the digest of a shard's whole file."""
    state = found.files.get(name)
    if state and _whole(meant, state):
        state = state.model_copy(update={"digest": digest_file(folder / name)})
    return state == meant


def is_file_of(path: Path, digest: str) -> bool:
    """Whether there is a file, and no link, with that digest. Raises a `StorageError`."""
    with fsio.storage_errors(path):
        try:
            return path.is_file() and not path.is_symlink() and digest_file(path) == digest
        except FileNotFoundError:
            return False


def refuse_damaged(model: Path, ledger: Ledger, found: State) -> None:
    """Raise `LedgerDamaged` where tensors, headers of shards or config.json are not what the ledger says.

    `found` is the state of `model` now. Other files are not looked at: see `carried_over`.
    """
    expected = ledger.current
    wrong = [name for name, digest in expected.tensors.items() if found.tensors.get(name) != digest]
    if not wrong and found.fingerprint != expected.fingerprint:
        wrong = ["config.json"]
    if not wrong:  # with all tensors as they were, it is the header that makes the digest of a shard another
        wrong = [
            f"the header of {name}"
            for name, meant in expected.files.items()
            if (state := found.files.get(name)) and state.digest.startswith(SHARD)
            if not is_as_recorded(model, name, found, meant.model_copy(update={"mode": state.mode}))
        ]
    if wrong:
        raise LedgerDamaged(
            f"{model} is not what its ledger says: {', '.join(wrong[:5])}",
            hint="`planner verify MODEL` names what differs; put those files back from a copy, then run this again",
        )


def refuse_damaged_records(model: Path, ledger: Ledger, patches: Sequence[int]) -> None:
    """Raise `LedgerDamaged` where what `patches` replaced is told or kept in records that are not what the ledger says.

    Undo data in further files are of tensors alone, and those are proven by the digests of the tensors that come of
    them. Ledgers of earlier versions have no digests of records.
    """
    for event in ledger.events:
        if event.kind == "applied" and event.patch in patches:
            for name in (RECEIPT, UNDO):
                path = patch_folder(model, event.patch) / name
                if name in event.records and not is_file_of(path, event.records[name]):
                    raise LedgerDamaged(
                        f"{path} is not what the ledger says, so what it would bring back is not certain",
                        hint="put it back from a copy; `planner verify MODEL` names everything that differs",
                    )


def carried_over(ledger: Ledger, before: State, after: State, rewritten: Collection[str]) -> State:
    """What the next ledger says the checkpoint is, once a transaction turned `before` into `after`.

    That is `after`, but for files that were not as `ledger` said and that the transaction did not write (`rewritten`
    are those it did, or removed): they keep the entry they had, be they changed or missing, and files that the ledger
    did not know stay unknown. A file that was written keeps a mode that was wrong before.
    """
    files: dict[str, FileState] = {}
    for name in (*after.files, *(name for name in ledger.current.files if name not in after.files)):
        meant, was, now = ledger.current.files.get(name), before.files.get(name), after.files.get(name)
        if name in rewritten:
            if now and meant and was and was.mode != meant.mode:
                now = now.model_copy(update={"mode": meant.mode})
            if now:
                files[name] = now
        elif meant:
            # Where the whole file was hashed by an earlier version, its entry says more than ours, and is kept.
            files[name] = now if now and was == meant else meant
    return after.model_copy(update={"files": files})


def originals_kept(ledger: Ledger, said: State, restored: Collection[str]) -> State:
    """`said`, the state after all patches are taken back, where `restored` are files as the first patches found them.

    What a patch found need not be the original: the file may have been changed by hand before. If the receipts that
    prove what they found are proven themselves, the ledger goes on to name the original, so that `verify` tells of
    the change. If not, raises `LedgerDamaged`.
    """
    files = dict(said.files)
    for name in restored:
        original, now = ledger.original.files.get(name), files.get(name)
        if original and now and (original.digest == now.digest or _whole(original, now)):
            continue
        if original is None and now is None:
            continue
        proven = all(RECEIPT in event.records for event in ledger.events if event.kind == "applied")
        if not proven or not seal_holds(ledger):
            raise LedgerDamaged(
                f"{name} would not come back as it was before the first patch",
                hint="nothing was changed; restore the folder .planner from a backup, then revert",
            )
        files.pop(name, None)
        if original:
            files[name] = original
    return said.model_copy(update={"files": files})


def left_so(said: State, after: State) -> tuple[str, ...]:
    """Files that are not as a ledger says that was carried over; those that it does not know are not named."""
    return tuple(
        name
        for name, meant in said.files.items()
        if (state := after.files.get(name)) is None
        or (state if not _whole(meant, state) else state.model_copy(update={"digest": meant.digest})) != meant
    )


def _whole(meant: FileState, state: FileState) -> bool:
    """Whether the ledger has the digest of a shard's whole file, as versions before 0.3 wrote it."""
    return state.digest.startswith(SHARD) and not meant.digest.startswith(SHARD)
