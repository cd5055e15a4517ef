"""Folders: made, filled under a name that nobody reads, and given their place in one step."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from planner.errors import StorageError, UnsafeInPlace
from planner.fsio import calls
from planner.fsio.attributes import copy_attributes, drop_inherited
from planner.fsio.failures import storage_errors
from planner.fsio.mounts import mounted_in

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
    """Make one folder, whose parent exists and whose name is free, for its owner alone until it is finished.

    Neither it nor what is made in it has access control lists from the parent.
    """
    with storage_errors(path):
        calls.mkdir(path, stat.S_IRWXU)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            drop_inherited(descriptor)
        finally:
            os.close(descriptor)


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
    """Give a finished folder its final name in one step. The name must be free, or an empty folder.

    Raises `UnsafeInPlace` where the file system cannot rename this folder, as in the lower layer of an overlay.
    """
    with storage_errors(final):
        try:
            calls.rename(stage, final)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise UnsafeInPlace(
                    f"the file system of {stage} cannot give this folder another name",
                    hint="write the result beside it instead: --out DIR",
                ) from None
            raise
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
    """Remove a folder and all that is in it, if it is there. Links are removed, not followed.

    What is mounted in it belongs to another place: raises a `StorageError` that names it, before anything is removed.
    """
    with storage_errors(path), suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode) and (places := mounted_in(path)):
            raise _mounted(places[0], path)
        _remove(path, found.st_dev)


def _remove(tree: Path, device: int) -> None:
    # Not by calling itself for each level: a thousand of them are more than Python bears.
    waiting = [(tree, False)]
    while waiting:
        path, emptied = waiting.pop()
        with suppress(FileNotFoundError):  # of this entry: if somebody else removed it, the others are still to go
            if emptied:
                calls.rmdir(path)
                continue
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                calls.unlink(path)
                continue
            if found.st_dev != device:  # mounted a moment ago, or where the system has no table of its mounts
                raise _mounted(path, tree)
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                with suppress(PermissionError):  # then the removal says what is wrong
                    calls.chmod(path, stat.S_IRWXU)
            waiting.append((path, True))
            waiting += [(path / name, False) for name in sorted(os.listdir(path), reverse=True)]


def _mounted(place: Path, tree: Path) -> StorageError:
    return StorageError(
        f"{tree} is not removed: another file system, or another folder, is mounted on {place}",
        hint=f"unmount it (`umount {shlex.quote(str(place))}`), then run the command again",
    )
