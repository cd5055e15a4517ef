"""Re-hash everything and compare it with the ledger: tensors, files, and the records of the patches themselves."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from planner import fsio
from planner.checkpoint import digest_file, open_checkpoint
from planner.transaction.ledger import patch_folder, read_ledger
from planner.transaction.state import SHARD, measure
from planner.transaction.types import FileState, Ledger, State, Verification

__all__ = ["recorded_bytes", "verify"]

_UNDO = "undo*.safetensors"
"""Undo data; they are removed once their patch is taken back."""


def verify(model: Path, *, progress: Callable[[int], None] | None = None) -> Verification:
    """Compare every byte of the checkpoint, and of the records of its patches, with its ledger.

    `progress` is told the bytes hashed: the checkpoint's tensors and files, and `recorded_bytes`. Raises a
    `CheckpointError` if the checkpoint cannot even be read, `LedgerDamaged` if the ledger cannot, or a `StorageError`.
    """
    ledger = read_ledger(model)
    found = measure(open_checkpoint(model), progress=progress)
    files = len(found.files)
    nbytes = sum(state.size for state in found.files.values())
    if ledger is None:
        return Verification(
            path=str(model),
            fingerprint=found.fingerprint,
            ledger=False,
            sound=True,
            original=None,
            files=files,
            bytes=nbytes,
        )
    expected = ledger.current
    damaged_tensors = tuple(name for name in expected.tensors if found.tensors.get(name) != expected.tensors[name])
    damaged_files = tuple(name for name, meant in expected.files.items() if not _same(model, name, found, meant))
    damaged_records: list[str] = []
    patches = patch_folder(model, 0).parent
    for name, digest in _records(ledger).items():
        path = model / name
        if path.parent.parent != patches or not _is(path, digest):  # a name that climbs out is never followed
            damaged_records.append(name)
        else:
            files += 1
            nbytes += path.stat().st_size
            if progress:
                progress(path.stat().st_size)
    return Verification(
        path=str(model),
        fingerprint=found.fingerprint,
        ledger=True,
        sound=not damaged_tensors and not damaged_files and not damaged_records,
        original=all(_same(model, name, found, state) for name, state in ledger.original.files.items()),
        damaged_tensors=damaged_tensors,
        damaged_files=damaged_files,
        damaged_records=tuple(damaged_records),
        added_files=tuple(name for name in found.files if name not in expected.files),
        files=files,
        bytes=nbytes,
    )


def recorded_bytes(model: Path) -> int:
    """Bytes of the records that `verify` will hash. Raises `LedgerDamaged`."""
    ledger = read_ledger(model)
    paths = (model / name for name in (_records(ledger) if ledger else ()))
    return sum(path.stat().st_size for path in paths if path.is_file())


def _records(ledger: Ledger) -> dict[str, str]:
    """The digests of all records that must be there, by path inside the checkpoint folder.

    Undo data are there as long as their patch is in force. Ledgers of earlier versions name no records, but for the
    digest of each plan.
    """
    root = patch_folder(Path(), 0).parent
    found: dict[str, str] = {}
    for event in ledger.events:
        records = dict(event.records)
        if event.kind == "applied" and event.plan_digest and not records:
            records = {"plan.json": event.plan_digest}
        for name, digest in records.items():
            if event.patch in ledger.in_force or not fnmatchcase(name, _UNDO):
                found[(root / f"{event.patch:04d}" / name).as_posix()] = digest
    return found


def _is(path: Path, digest: str) -> bool:
    """Whether the file is there and has that digest."""
    with fsio.storage_errors(path):
        try:
            return path.is_file() and not path.is_symlink() and digest_file(path) == digest
        except FileNotFoundError:
            return False


def _same(model: Path, name: str, found: State, meant: FileState) -> bool:
    """Whether a file is as it should be; a ledger of an earlier version has the digest of a shard's whole file."""
    state = found.files.get(name)
    if state and state.digest.startswith(SHARD) and not meant.digest.startswith(SHARD):
        state = state.model_copy(update={"digest": digest_file(model / name)})
    return state == meant
