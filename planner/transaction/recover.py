"""Clean up after a process that was killed. No state has to be guessed: a stage that still stands is never needed."""

from __future__ import annotations

from pathlib import Path

from planner.transaction.stage import exclusive, leftovers

__all__ = ["recover"]


def recover(model: Path) -> tuple[Path, ...]:
    """Remove the stages that killed processes left beside `model`; returns them. Raises `Locked` if one is at work.

    A stage is either not finished, so the old state is in place; or it was switched in and is what the old state was,
    whose undo data is in the ledger.
    """
    found = tuple(leftovers(model))
    with exclusive(model):
        return found
