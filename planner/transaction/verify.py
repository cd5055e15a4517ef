"""Re-hash everything and compare it with the ledger: tensors, files, the records of the patches, and its own seal.

The seal, and the receipts that say once more what an event says, show a ledger that was changed by accident. They are
no proof against who can write the folder: that is what signatures are for (`planner.signing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from planner.checkpoint import open_checkpoint
from planner.errors import LedgerDamaged
from planner.transaction.ledger import RECEIPT, patch_folder, read_ledger
from planner.transaction.recorded import is_as_recorded, is_file_of
from planner.transaction.seal import seal_holds
from planner.transaction.state import measure
from planner.transaction.types import Ledger, Verification
from planner.transaction.undo.way_back import read_receipt

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
    damaged_files = tuple(
        name for name, meant in expected.files.items() if not is_as_recorded(model, name, found, meant)
    )
    damaged_records: list[str] = []
    seal = None if ledger.seal is None else seal_holds(ledger)
    patches = patch_folder(model, 0).parent
    for name, digest in _records(ledger).items():
        path = model / name
        if path.parent.parent != patches or not is_file_of(path, digest):  # a name that climbs out is never followed
            damaged_records.append(name)
        else:
            files += 1
            nbytes += path.stat().st_size
            if progress:
                progress(path.stat().st_size)
    events = tuple(_disagreements(model, ledger, damaged_records))
    return Verification(
        path=str(model),
        fingerprint=found.fingerprint,
        ledger=True,
        sound=seal is not False and not (damaged_tensors or damaged_files or damaged_records or events),
        original=all(is_as_recorded(model, name, found, state) for name, state in ledger.original.files.items()),
        damaged_tensors=damaged_tensors,
        damaged_files=damaged_files,
        damaged_records=tuple(damaged_records),
        damaged_events=events,
        seal=seal,
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


def _disagreements(model: Path, ledger: Ledger, damaged: Sequence[str]) -> Iterator[str]:
    """What the history says of a patch otherwise than its receipt, where the receipt is not `damaged` itself.

    Receipts of earlier versions do not say everything; what they do not say cannot disagree.
    """
    for event in ledger.events:
        folder = patch_folder(model, event.patch)
        if event.kind != "applied" or (folder / RECEIPT).relative_to(model).as_posix() in damaged:
            continue
        try:
            receipt = read_receipt(folder)
        except LedgerDamaged:
            if event.patch in ledger.in_force:  # without it there is no way back
                yield f"patch {event.patch}: its receipt cannot be read"
            continue
        approvals = [approval.rpartition(" (") for approval in receipt.approvals.values()]
        said: dict[str, tuple[object, object]] = {
            "patch": (event.patch, receipt.patch),
            "at": (event.at, receipt.at),
            "by": (event.by, receipt.by),
            "fingerprint": (event.fingerprint, receipt.fingerprint_after),
            "plan": (event.plan, receipt.plan),
            "plan_digest": (event.plan_digest, receipt.plan_digest),
            "modifications": (event.modifications, len(receipt.modifications)),
            "changed_tensors": (event.changed_tensors, len(receipt.tensors)),
            "changed_elements": (event.changed_elements, sum(tensor.changed_elements for tensor in receipt.tensors)),
            "signed_by": (event.signed_by, receipt.signed_by),
        }
        if approvals:
            said["approved_by"] = event.approved_by, tuple(dict.fromkeys(name for name, _, _ in approvals))
            said["approved_by_flag"] = event.approved_by_flag, any(how == "yes)" for _, _, how in approvals)
        for name, (told, recorded) in said.items():
            if told != recorded:
                yield f"patch {event.patch}: its receipt has another {name} than the ledger"
