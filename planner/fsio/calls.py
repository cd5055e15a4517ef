"""The calls of the operating system that change a disk, one function each, and nothing else.

Everything else in this package goes through here, by `calls.NAME(...)`: so a test can count them, make any one fail,
cut one short or have it lie, and write down what has become durable and what has not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

__all__ = [
    "begin_writing_out",
    "chmod",
    "chown",
    "clone",
    "create",
    "exchange",
    "fallocate",
    "fsync",
    "link",
    "mkdir",
    "open_to_write",
    "pwrite",
    "removexattr",
    "rename",
    "rmdir",
    "setxattr",
    "take_lock",
    "truncate",
    "unlink",
    "utime",
    "write",
]

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h, for sync_file_range(2): begin to write out, and do not wait
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (btrfs, xfs)
_RENAME_EXCHANGE = 2  # linux/fs.h, for renameat2(2)
_AT_FDCWD = -100


def create(path: Path, mode: int = 0o600) -> int:
    """Open a new file to write; its name must be free."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


def open_to_write(path: Path) -> int:
    """Open a file that is there, to read and write it. A link is not followed."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def take_lock(path: Path) -> int:
    """Make a lock file; its name must be free."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def write(descriptor: int, data: bytes | memoryview) -> int:
    """write(2): the number of bytes written, which may be fewer."""
    return os.write(descriptor, data)


def pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    """pwrite(2), likewise."""
    return os.pwrite(descriptor, data, offset)


def fallocate(descriptor: int, nbytes: int) -> None:
    """Reserve the disk space of the first `nbytes` bytes; the file has that size then."""
    os.posix_fallocate(descriptor, 0, nbytes)


def truncate(descriptor: int, nbytes: int) -> None:
    """Cut an open file."""
    os.ftruncate(descriptor, nbytes)


def begin_writing_out(descriptor: int, begin: int, nbytes: int) -> None:
    """A hint: where it cannot be given, fsync does all of the work at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    sync_file_range = getattr(libc, "sync_file_range", None)
    if sync_file_range is not None:
        sync_file_range(descriptor, ctypes.c_int64(begin), ctypes.c_int64(nbytes), _SYNC_FILE_RANGE_WRITE)


def fsync(descriptor: int) -> None:
    """Make an open file, or the names in an open folder, durable."""
    os.fsync(descriptor)


def chmod(target: int | Path, mode: int) -> None:
    """Set permission bits, of an open file or by name."""
    os.chmod(target, mode)


def chown(descriptor: int, user: int, group: int) -> None:
    """Set owner and group."""
    os.fchown(descriptor, user, group)


def utime(descriptor: int, times: tuple[int, int]) -> None:
    """Set the times of the last reading and the last change, in nanoseconds."""
    os.utime(descriptor, ns=times)


def setxattr(descriptor: int, name: str, value: bytes) -> None:
    """Set an extended attribute."""
    os.setxattr(descriptor, name, value)


def removexattr(descriptor: int, name: str) -> None:
    """Remove an extended attribute."""
    os.removexattr(descriptor, name)


def clone(writer: int, reader: int) -> bool:
    """Let `writer` share the extents of `reader`; False where the file system cannot."""
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return False
    return True


def link(source: Path, target: Path) -> None:
    """Give a file a second name."""
    os.link(source, target)


def mkdir(path: Path, mode: int = 0o777) -> None:
    """Make a folder."""
    os.mkdir(path, mode)


def rename(source: Path, target: Path) -> None:
    """rename(2): replaces a file, or an empty folder, and refuses any other."""
    os.rename(source, target)


def exchange(first: Path, second: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE: swap two names in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    failed = errno.ENOSYS
    if renameat2 is not None:
        arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
        failed = 0 if renameat2(*arguments) == 0 else ctypes.get_errno()
    if failed:
        raise OSError(failed, os.strerror(failed), str(second))


def unlink(path: Path) -> None:
    """Remove the name of a file."""
    os.unlink(path)


def rmdir(path: Path) -> None:
    """Remove an empty folder."""
    os.rmdir(path)
