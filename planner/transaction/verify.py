"""Re-hash everything and compare it with the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planner.checkpoint import digest_file, open_checkpoint
from planner.transaction.ledger import read_ledger
from planner.transaction.state import SHARD, measure
from planner.transaction.types import FileState, State, Verification

__all__ = ["verify"]


def verify(model: Path, *, progress: Callable[[int], None] | None = None) -> Verification:
    """Compare every byte of the checkpoint with its ledger. Raises a `CheckpointError` if it cannot even be read."""
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
    return Verification(
        path=str(model),
        fingerprint=found.fingerprint,
        ledger=True,
        sound=not damaged_tensors and not damaged_files,
        original=all(_same(model, name, found, state) for name, state in ledger.original.files.items()),
        damaged_tensors=damaged_tensors,
        damaged_files=damaged_files,
        added_files=tuple(name for name in found.files if name not in expected.files),
        files=files,
        bytes=nbytes,
    )


def _same(model: Path, name: str, found: State, meant: FileState) -> bool:
    """Whether a file is as it should be; a ledger of an earlier version has the digest of a shard's whole file."""
    state = found.files.get(name)
    if state and state.digest.startswith(SHARD) and not meant.digest.startswith(SHARD):
        state = state.model_copy(update={"digest": digest_file(model / name)})
    return state == meant
