"""Folders: made, filled under a name that nobody reads, and given their place in one step."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from planner.errors import UnsafeInPlace
from planner.fsio import calls
from planner.fsio.attributes import copy_attributes
from planner.fsio.failures import storage_errors

__all__ = [
    "attributes_like",
    "ensure_folder",
    "exchange_folders",
    "fsync_folder",
    "make_folder",
    "publish_folder",
    "remove_tree",
]

_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV, errno.EBUSY)


def make_folder(path: Path) -> None:
    """Make one folder, whose parent exists and whose name is free, for its owner alone until it is finished."""
    with storage_errors(path):
        calls.mkdir(path, stat.S_IRWXU)


def attributes_like(path: Path, like: Path, *, writable: bool = False) -> None:
    """Give a folder mode, owner and extended attributes of the folder `like`: the last thing done to it.

    `writable` lets its owner write into it whatever the mode of `like`.
    """
    with storage_errors(path):
        reader = os.open(like, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            writer = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                copy_attributes(reader, writer, more=stat.S_IRWXU if writable else 0)
            finally:
                os.close(writer)
        finally:
            os.close(reader)


def ensure_folder(path: Path) -> None:
    """Make a folder and its parents, where they are missing."""
    with storage_errors(path):
        missing = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            try:
                calls.mkdir(folder)
            except FileExistsError:
                if not folder.is_dir():  # else somebody needed it as well
                    raise


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            calls.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish_folder(stage: Path, final: Path) -> None:
    """Give a finished folder its final name in one step. The name must be free, or an empty folder."""
    with storage_errors(final):
        calls.rename(stage, final)
    fsync_folder(final.parent)


def exchange_folders(first: Path, second: Path) -> None:
    """Swap the names of two folders in one step (renameat2 with RENAME_EXCHANGE).

    Raises `UnsafeInPlace` where the operating system or file system has no such step: the alternative would be one
    rename a file, which a crash can leave half done.
    """
    with storage_errors(second):
        try:
            calls.exchange(first, second)
        except OSError as error:
            if error.errno in _NO_EXCHANGE:
                raise UnsafeInPlace(
                    f"the file system of {second} cannot swap two folders in one step",
                    hint="write the result beside it instead: --out DIR",
                ) from None
            raise
    fsync_folder(second.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it, if it is there. Links are removed, not followed."""
    with storage_errors(path):
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):  # of this entry: if somebody else removed it, the others are still to go
        if not stat.S_ISDIR(path.lstat().st_mode):
            calls.unlink(path)
            return
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            with suppress(PermissionError):  # then the removal says what is wrong
                calls.chmod(path, stat.S_IRWXU)
        for name in sorted(os.listdir(path)):
            _remove(path / name)
        calls.rmdir(path)
