"""The ledger on disk: `.planner/` inside the checkpoint folder.

    .planner/ledger.json                        history, and what every file must be now
    .planner/patches/0001/plan.json             the plan as it was reviewed
    .planner/patches/0001/receipt.json          what it did
    .planner/patches/0001/NAME.safetensors      arrays that the plan reads, if they lay beside it
    .planner/patches/0001/undo.safetensors      what it destroyed, and more such files beside it (`undo`);
                                                removed once it is reverted
    .planner/reserve                            room that a revert in place may use (`reserve_path`)

It is staged together with the weights, so one switch of names commits both.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from planner import fsio
from planner.errors import LedgerDamaged
from planner.transaction.state import LEDGER_FOLDER
from planner.transaction.types import Ledger

__all__ = [
    "PLAN",
    "RECEIPT",
    "UNDO",
    "encode_ledger",
    "goals_in_force",
    "ledger_path",
    "patch_folder",
    "read_ledger",
    "reserve_path",
    "restore_reserve",
    "write_record",
]

PLAN = "plan.json"
RECEIPT = "receipt.json"
UNDO = "undo.safetensors"

_SLOT = 16 * 2**20
"""More than a chunk that is changed in place takes (`low_space`); the records that follow it grow with the ledger."""


def ledger_path(folder: Path) -> Path:
    """Where the ledger of a checkpoint is."""
    return folder / LEDGER_FOLDER / "ledger.json"


def patch_folder(folder: Path, number: int) -> Path:
    """Where the record of one patch is."""
    return folder / LEDGER_FOLDER / "patches" / f"{number:04d}"


def reserve_path(folder: Path) -> Path:
    """A file of nothing but room, which a `revert --low-space` gives up: so that it can be done on a full disk."""
    return folder / LEDGER_FOLDER / "reserve"


def restore_reserve(folder: Path) -> None:
    """Make that file, if the ledger asks for it and it is not there. Raises `NoSpace`, `LedgerDamaged`."""
    path = reserve_path(folder)
    ledger = read_ledger(folder)
    if ledger and ledger.reserve:
        with fsio.storage_errors(path):
            if path.exists() and path.stat().st_size == ledger.reserve:
                return
        try:
            fsio.remove_file(path)  # half of it, of a process that was killed
            fsio.reserve_file(path, ledger.reserve)
            fsio.fsync_file(path)
            fsio.fsync_folder(path.parent)
        except BaseException:
            fsio.remove_file(path)
            raise


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger of a checkpoint, or None if no patch was ever applied to it. Raises `LedgerDamaged`."""
    path = ledger_path(folder)
    try:
        content = path.read_bytes()
        ledger = Ledger.model_validate_json(content.decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise LedgerDamaged(
            f"{path} cannot be read: {str(error).splitlines()[0]}",
            hint="restore it from a backup; without it a patch cannot be taken back",
        ) from None
    if ledger.reserve > _SLOT + 4 * len(content):
        raise LedgerDamaged(
            f"{path} asks for {ledger.reserve:,} bytes to be reserved, which no patch can need",
            hint="restore it from a backup",
        )
    return ledger


def goals_in_force(ledger: Ledger) -> tuple[str, ...]:
    """The goals of the patches that the weights contain, oldest first."""
    goals = {event.patch: event.goal or "" for event in ledger.events if event.kind == "applied"}
    return tuple(goals[number] for number in ledger.in_force)


def write_record(path: Path, content: bytes) -> None:
    """Write one file of the ledger and read it back. Raises `StorageError` if that is not what was written."""
    fsio.create_file(path, [content])
    with fsio.storage_errors(path):
        kept = path.read_bytes()
    if kept != content:
        raise fsio.not_as_written(path.name)


def encode_ledger(ledger: Ledger) -> bytes:
    """The ledger as a file."""
    return ledger.model_dump_json(indent=1).encode() + b"\n"
