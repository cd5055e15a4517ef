"""The only module that writes files.

Every change to a disk goes through the dozen calls below, so that one page answers "what can change a byte?", and so
that a test can make each of them fail in turn. A file written here is fsynced before its name appears; a folder is
fsynced after its entries change. Nothing here knows what the bytes mean.

Operating-system errors leave as `NoSpace`, `ReadOnly` or `StorageError`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from planner.errors import Locked, NoSpace, ReadOnly, StorageError, UnsafeInPlace

__all__ = [
    "copy_file",
    "create_file",
    "ensure_folder",
    "exchange_folders",
    "fsync_file",
    "fsync_folder",
    "link_or_copy_file",
    "lock",
    "make_folder",
    "not_as_written",
    "publish_folder",
    "remove_file",
    "remove_tree",
    "replace_file",
    "require_folder_of",
    "require_space",
    "storage_errors",
]

_CHUNK = 8 * 2**20
_WORTH_FLUSHING = 32 * 2**20
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h, for sync_file_range(2): begin to write out, and do not wait
_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (btrfs, xfs)
_RENAME_EXCHANGE = 2  # linux/fs.h, for renameat2(2)
_AT_FDCWD = -100


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into the planner's own words."""
    try:
        yield
    except OSError as error:
        raise _translated(error, Path(error.filename) if isinstance(error.filename, str) else path) from None


def _translated(error: OSError, path: Path) -> StorageError:
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


def create_file(
    path: Path,
    chunks: Iterable[bytes | memoryview],
    *,
    mode: int = 0o644,
    like: Path | None = None,
    durable: bool = True,
) -> None:
    """Write a new file and fsync it, with `mode`, or with mode, owner and times of the file `like`.

    For files inside a folder that has no final name yet; the name must be free. What is not `durable` at once needs
    `fsync_file` before the folder gets its name.
    """
    with storage_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_chunks(descriptor, chunks)
            if like is None:
                os.fchmod(descriptor, mode)
            else:
                _copy_attributes(like.stat(), descriptor)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(path: Path, content: bytes | Iterable[bytes], *, mode: int | None = None) -> None:
    """Put `content`, or its pieces, under the name `path` in one step: a reader sees the old file or the new, whole.

    Without `mode` the file keeps the mode it has; a new one gets 0644.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if mode is None:
        mode = 0o644
        with storage_errors(path), suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
    try:
        with storage_errors(temporary), suppress(FileNotFoundError):
            os.unlink(temporary)  # left by a process that was killed and had our number
        create_file(temporary, [content] if isinstance(content, bytes) else content, mode=mode)
        with storage_errors(path):
            os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def copy_file(
    source: Path, target: Path, *, chunks: Iterable[bytes | memoryview] | None = None, durable: bool = True
) -> bool:
    """Copy bytes, mode, owner and times to a new file; share extents where the file system can.

    Where it cannot, the bytes are `chunks`, if they are given: for who reads the source anyway. Returns whether they
    were taken. `durable` is as for `create_file`.
    """
    with storage_errors(target):
        before = source.stat()
        if not stat.S_ISREG(before.st_mode):
            raise StorageError(f"{source} is not a regular file", hint="remove it from the checkpoint folder")
        reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                shared = _shared_extents(reader, writer)
                if not shared:
                    _write_chunks(writer, _chunks_of(reader) if chunks is None else chunks)
                _copy_attributes(before, writer)
                if durable:
                    os.fsync(writer)
            finally:
                os.close(writer)
        finally:
            os.close(reader)
    return not shared and chunks is not None


def link_or_copy_file(
    source: Path, target: Path, *, chunks: Iterable[bytes | memoryview] | None = None, durable: bool = True
) -> bool:
    """Give an unchanged file a second name, where that is safe, else copy it, as `copy_file` does.

    Safe means: a regular file with one name. The planner never writes into an existing file, so the two names can
    only ever show the same bytes, and the old one is removed soon after.
    """
    with storage_errors(target):
        found = source.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP):
                    raise
            else:
                return False
    return copy_file(source, target, chunks=chunks, durable=durable)


def make_folder(path: Path, *, like: Path | None = None) -> None:
    """Make one folder, whose parent exists and whose name is free, with mode and owner of the folder `like`.

    Its owner may always write into it: a copy of a read-only folder has to be filled first, and removed some day.
    """
    with storage_errors(path):
        os.mkdir(path)
        if like is not None:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _copy_attributes(like.stat(), descriptor, more=stat.S_IRWXU)
            finally:
                os.close(descriptor)


def ensure_folder(path: Path) -> None:
    """Make a folder and its parents, where they are missing."""
    with storage_errors(path):
        os.makedirs(path, exist_ok=True)


def fsync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def publish_folder(stage: Path, final: Path) -> None:
    """Give a finished folder its final name in one step. The name must be free, or an empty folder."""
    with storage_errors(final):
        os.rename(stage, final)  # rename(2) replaces an empty folder and refuses any other
    fsync_folder(final.parent)


def exchange_folders(first: Path, second: Path) -> None:
    """Swap the names of two folders in one step (renameat2 with RENAME_EXCHANGE).

    Raises `UnsafeInPlace` where the operating system or file system has no such step: the alternative would be one
    rename a file, which a crash can leave half done.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    failed = errno.ENOSYS
    if renameat2 is not None:
        arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
        failed = 0 if renameat2(*arguments) == 0 else ctypes.get_errno()
    if failed in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV, errno.EBUSY):
        raise UnsafeInPlace(
            f"the file system of {second} cannot swap two folders in one step",
            hint="write the result beside it instead: --out DIR",
        )
    if failed:
        raise _translated(OSError(failed, os.strerror(failed)), second)
    fsync_folder(second.parent)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    with storage_errors(path), suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it, if it is there."""
    with storage_errors(path), suppress(FileNotFoundError):
        shutil.rmtree(path)


def require_folder_of(path: Path) -> None:
    """Raise `StorageError` if the folder that `path` is to be made in does not exist."""
    if not path.parent.is_dir():
        raise StorageError(f"the folder {path.parent} does not exist", hint="make it first, or choose another place")


def require_space(folder: Path, needed: int) -> None:
    """Raise `NoSpace` before the first byte is written, if `needed` bytes will not fit."""
    with storage_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpace(
            f"{needed:,} bytes are needed in {folder}, {free:,} are free",
            hint="free some space, or choose another place with --out",
        )


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the duration. Raises `Locked`, naming the holder, if another process has it.

    The kernel releases the lock when its holder dies, however it dies, so no stale lock can remain. The descriptor
    is close-on-exec: a child process that inherited it would keep the lock after its parent was killed.
    """
    descriptor = _locked_descriptor(path)
    try:
        with suppress(OSError):  # a full disk must not keep `recover` from freeing space; the number is for people
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        try:
            with suppress(OSError):
                os.unlink(path)
        finally:
            os.close(descriptor)


def _locked_descriptor(path: Path) -> int:
    while True:
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        taken = False
        try:
            taken = _taken(descriptor, path)
        finally:
            if not taken:
                os.close(descriptor)
        if taken:
            return descriptor


def _taken(descriptor: int, path: Path) -> bool:
    """Lock the open file; False if it is no longer the one called `path`. Raises `Locked`."""
    with storage_errors(path):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise Locked(
                f"process {holder} is at work here ({path})",
                hint="wait until it has finished, then run the command again",
            ) from None
        # Whoever held the lock before may have removed the name between our open and our flock; then the lock we hold
        # is on a file that nobody else will find.
        with suppress(FileNotFoundError):
            return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    return False


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        # Small enough for Ctrl-C to be noticed soon, and short writes (a full disk, a signal) are continued.
        rest = rest[os.write(descriptor, rest[:_CHUNK]) :]


def _write_chunks(descriptor: int, chunks: Iterable[bytes | memoryview]) -> None:
    """Write them all; the disk begins its work on the first while the last are not there yet."""
    written = begun = 0
    for chunk in chunks:
        _write_all(descriptor, chunk)
        written += memoryview(chunk).nbytes
        if written - begun >= _WORTH_FLUSHING:
            _begin_writing_out(descriptor, begun, written - begun)
            begun = written


def _begin_writing_out(descriptor: int, begin: int, nbytes: int) -> None:
    """A hint: where it cannot be given, fsync does all of the work at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    sync_file_range = getattr(libc, "sync_file_range", None)
    if sync_file_range is not None:
        sync_file_range(descriptor, ctypes.c_int64(begin), ctypes.c_int64(nbytes), _SYNC_FILE_RANGE_WRITE)


def _chunks_of(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, _CHUNK):
        yield chunk


def _copy_attributes(found: os.stat_result, descriptor: int, *, more: int = 0) -> None:
    now = os.fstat(descriptor)
    if (now.st_uid, now.st_gid) != (found.st_uid, found.st_gid):
        with suppress(PermissionError):  # only root may give files away
            os.fchown(descriptor, found.st_uid, found.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | more)
    os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))


def _shared_extents(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False  # not on this file system
    return True
