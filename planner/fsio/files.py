"""Files: written whole, fsynced before their name counts, with the attributes of another file where that is wanted."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from planner.errors import StorageError, UnsafeInPlace
from planner.fsio import calls
from planner.fsio.attributes import copy_attributes
from planner.fsio.failures import storage_errors
from planner.fsio.folders import fsync_folder

__all__ = [
    "copy_file",
    "create_file",
    "fill_file",
    "forget_cached",
    "fsync_file",
    "link_file",
    "open_in_place",
    "overwrite",
    "remove_file",
    "replace_file",
    "reserve_file",
    "share_file",
]

_CHUNK = 8 * 2**20
_NO_RESERVING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_WORTH_FLUSHING = 32 * 2**20


def create_file(
    path: Path,
    chunks: Iterable[bytes | memoryview],
    *,
    mode: int = 0o644,
    like: Path | None = None,
    durable: bool = True,
) -> None:
    """Write a new file and fsync it, with `mode`, or with mode, owner and extended attributes of the file `like`.

    For files inside a folder that has no final name yet; the name must be free. What is not `durable` at once needs
    `fsync_file` before the folder gets its name.
    """
    with storage_errors(path), _closing(calls.create(path)) as descriptor:
        _write_chunks(descriptor, chunks)
        _finish(descriptor, mode, like, durable)


def reserve_file(path: Path, nbytes: int) -> None:
    """Make a new file of `nbytes` bytes whose space on the disk is taken, to be filled later. Raises `NoSpace`.

    Where the file system cannot reserve, the file is empty: then only filling it shows whether there is room.
    """
    with storage_errors(path), _closing(calls.create(path)) as descriptor:
        if nbytes:
            try:
                calls.fallocate(descriptor, nbytes)
            except OSError as error:
                if error.errno not in _NO_RESERVING:
                    raise


def fill_file(
    path: Path,
    chunks: Iterable[bytes | memoryview],
    *,
    mode: int = 0o644,
    like: Path | None = None,
    durable: bool = True,
) -> None:
    """Write a file that `reserve_file` made, from its beginning, and cut what was reserved too much.

    The rest is as for `create_file`.
    """
    with storage_errors(path), _closing(calls.open_to_write(path)) as descriptor:
        written = _write_chunks(descriptor, chunks)
        if os.fstat(descriptor).st_size != written:
            calls.truncate(descriptor, written)
        _finish(descriptor, mode, like, durable)


@contextmanager
def open_in_place(path: Path) -> Iterator[int]:
    """An existing file, opened for `overwrite`; no name of it changes."""
    with storage_errors(path), _closing(calls.open_to_write(path)) as descriptor:
        yield descriptor


def overwrite(descriptor: int, data: bytes | memoryview, offset: int, *, durable: bool = True) -> None:
    """Put `data` over the bytes from `offset` on, and make them durable at once if asked. May raise OSError."""
    rest = memoryview(data).cast("B")
    while rest:
        done = calls.pwrite(descriptor, rest[:_CHUNK], offset)
        rest, offset = rest[done:], offset + done
    if durable:
        calls.fsync(descriptor)


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
        remove_file(temporary)  # left by a process that was killed and had our number
        create_file(temporary, [content] if isinstance(content, bytes) else content, mode=mode)
        with storage_errors(path):
            calls.rename(temporary, path)
        fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            calls.unlink(temporary)
        raise


def copy_file(
    source: Path, target: Path, *, chunks: Iterable[bytes | memoryview] | None = None, durable: bool = True
) -> bool:
    """Copy bytes, mode, owner, extended attributes and times to a new file; share extents where the file system can.

    Where it cannot, the bytes are `chunks`, if they are given: for who reads the source anyway. Returns whether they
    were taken. `durable` is as for `create_file`.
    """
    return _copied(source, target, chunks, durable, link=False)


def share_file(
    source: Path, target: Path, *, chunks: Iterable[bytes | memoryview] | None = None, durable: bool = True
) -> bool:
    """As `copy_file`, but where extents cannot be shared, the new name may be one more of the same file, if safe.

    Safe means: a regular file with one name, ours to link. Files are never written into but by `overwrite`, so the two
    names can only ever show the same bytes, and the old one is removed soon after.
    """
    return _copied(source, target, chunks, durable, link=True)


def link_file(source: Path, target: Path) -> None:
    """Give a file one more name. Raises `UnsafeInPlace` where the file system has no such names."""
    with storage_errors(target):
        if not _linked(source, target):
            raise UnsafeInPlace(
                f"the file system of {source} cannot give a file two names",
                hint="write the result elsewhere: --out DIR",
            )


def _copied(
    source: Path, target: Path, chunks: Iterable[bytes | memoryview] | None, durable: bool, *, link: bool
) -> bool:
    with storage_errors(target):
        before = source.stat()
        if not stat.S_ISREG(before.st_mode):
            raise StorageError(f"{source} is not a regular file", hint="remove it from the checkpoint folder")
        linkable = link and before.st_nlink == 1 and not source.is_symlink()
        with _closing(os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as reader:
            with _closing(calls.create(target)) as writer:
                shared = calls.clone(writer, reader)
                if not shared and not linkable:
                    _write_chunks(writer, _chunks_of(reader) if chunks is None else chunks)
                if shared or not linkable:
                    _finish_copy(reader, writer, before, durable)
                    return not shared and chunks is not None
            calls.unlink(target)
            if _linked(source, target):
                if durable:
                    calls.fsync(reader)
                return False
    return _copied(source, target, chunks, durable, link=False)


def _linked(source: Path, target: Path) -> bool:
    try:
        calls.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        return False
    return True


def fsync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    with storage_errors(path), _closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as descriptor:
        calls.fsync(descriptor)


def forget_cached(path: Path) -> None:
    """Have the next reading of a durable file come from the disk, where the system heeds that advice."""
    with storage_errors(path), _closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    with storage_errors(path), suppress(FileNotFoundError):
        calls.unlink(path)


def _finish(descriptor: int, mode: int, like: Path | None, durable: bool) -> None:
    if like is None:
        calls.chmod(descriptor, mode)
    else:
        with _closing(os.open(like, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as reader:
            copy_attributes(reader, descriptor)
    if durable:
        calls.fsync(descriptor)


def _finish_copy(reader: int, writer: int, before: os.stat_result, durable: bool) -> None:
    copy_attributes(reader, writer)
    calls.utime(writer, (before.st_atime_ns, before.st_mtime_ns))  # as they were before we read it
    if durable:
        calls.fsync(writer)


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        # Small enough for Ctrl-C to be noticed soon, and short writes (a full disk, a signal) are continued.
        rest = rest[calls.write(descriptor, rest[:_CHUNK]) :]


def _write_chunks(descriptor: int, chunks: Iterable[bytes | memoryview]) -> int:
    """Write them all; the disk begins its work on the first while the last are not there yet. Returns the bytes."""
    written = begun = 0
    for chunk in chunks:
        _write_all(descriptor, chunk)
        written += memoryview(chunk).nbytes
        if written - begun >= _WORTH_FLUSHING:
            calls.begin_writing_out(descriptor, begun, written - begun)
            begun = written
    return written


def _chunks_of(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, _CHUNK):
        yield chunk
