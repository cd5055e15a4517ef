"""Clean up after a process that was killed. No state has to be guessed.

A stage is either not finished, so the old state is in place; or it was switched in and is what the old state was, whose
undo data is in the ledger. A change in place has a journal that says which way to go (`low_space`).
"""

from __future__ import annotations

from pathlib import Path

from planner.checkpoint import set_aside
from planner.transaction.stage import journal_folder, leftovers, own_name
from planner.transaction.writer import exclusive

__all__ = ["recover"]


def recover(model: Path) -> tuple[Path, ...]:
    """Make `model` whole, and remove what killed processes left beside it; returns what that was.

    Raises `Locked` if a process is at work, `RecoveryBlocked`, `LedgerDamaged` or another `StorageError`.
    """
    model = own_name(model)
    found = [*leftovers(model), journal_folder(model), set_aside(model)]
    found = [path for path in found if path.exists()]
    with exclusive(model):
        return tuple(found)
