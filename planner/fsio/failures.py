"""What the operating system says, in the planner's words."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planner.errors import NoSpace, ReadOnly, StorageError

__all__ = ["not_as_written", "storage_errors", "translated"]


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into `NoSpace`, `ReadOnly` or `StorageError`."""
    try:
        yield
    except OSError as error:
        raise translated(error, Path(error.filename) if isinstance(error.filename, str) else path) from None


def translated(error: OSError, path: Path) -> StorageError:
    """The error to raise for `error` about `path`."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace(
            f"no space left while writing {path}", hint="free some space, or choose another place with --out"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnly(f"{path} may not be written: {reason}", hint="choose a place you may write to with --out")
    return StorageError(f"{path}: {reason}", hint="check the disk and the path, then run the command again")


def not_as_written(what: str) -> StorageError:
    """The error for a disk that gave back something else than it was given, found before anything was committed."""
    return StorageError(
        f"what came back from the disk is not what was written: {what}",
        hint="nothing was changed; check the disk, and that nobody else writes to the checkpoint",
    )
