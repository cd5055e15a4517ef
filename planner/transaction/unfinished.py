"""What a process that was killed while it replaced one file of a ledger left behind: that file, under another name.

A whole transaction stages beside the checkpoint; only the record of an evaluation replaces files inside of it.
"""

from __future__ import annotations

from pathlib import Path

from planner import fsio
from planner.transaction.state import LEDGER_FOLDER

__all__ = ["unfinished_records"]


def unfinished_records(folder: Path) -> list[Path]:
    """Files in the ledger of the checkpoint in `folder` that never got their name. Under the lock none is in use."""
    ledger = folder / LEDGER_FOLDER
    with fsio.storage_errors(ledger):
        found = [*ledger.glob(".ledger.json.*.tmp"), *ledger.glob("patches/*/.evaluation-*.json.*.tmp")]
        return sorted(path for path in found if path.is_file() or path.is_symlink())
