"""Room on the disk: asked for before the first byte is written."""

from __future__ import annotations

import os
from pathlib import Path

from planner.errors import NoSpace, StorageError
from planner.fsio.failures import storage_errors

__all__ = ["free_bytes", "require_folder_of", "require_space"]


def require_folder_of(path: Path) -> None:
    """Raise `StorageError` if the folder that `path` is to be made in does not exist."""
    if not path.parent.is_dir():
        raise StorageError(f"the folder {path.parent} does not exist", hint="make it first, or choose another place")


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the file system of `folder`."""
    with storage_errors(folder):
        found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def require_space(folder: Path, needed: int, *, otherwise: str = "choose another place with --out") -> None:
    """Raise `NoSpace` before the first byte is written, if `needed` bytes will not fit; `otherwise` is for the hint."""
    free = free_bytes(folder)
    if free < needed:
        raise NoSpace(
            f"{needed:,} bytes are needed in {folder}, {free:,} are free", hint=f"free some space, or {otherwise}"
        )
