"""The records of earlier patches, taken over from one state of a checkpoint to the next."""

from __future__ import annotations

from pathlib import Path

from planner import fsio
from planner.checkpoint import digest_file
from planner.transaction.ledger import patch_folder
from planner.transaction.undo.data import undo_files

__all__ = ["copy_patch"]


def copy_patch(folder: Path, stage: Path, number: int, *, undone: bool = False) -> None:
    """Take the record of one patch over into the stage; without its undo data once it is undone."""
    target = patch_folder(stage, number)
    fsio.ensure_folder(target)
    source = patch_folder(folder, number)
    left = undo_files(source) if undone else []
    with fsio.storage_errors(source):
        paths = sorted(source.iterdir())
    for path in paths:
        if path not in left:
            fsio.share_file(path, target / path.name)
            with fsio.storage_errors(path):
                same = path.samefile(target / path.name) or digest_file(path) == digest_file(target / path.name)
            if not same:
                raise fsio.not_as_written(f"{path.name} of patch {number}")
