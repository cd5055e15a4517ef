"""Safetensors files of small arrays that a plan names: where they may lie, and how their numbers are read.

They come from strangers as plans do. The header is read as strictly as a checkpoint's; the numbers must be finite.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from planner.checkpoint import read_header
from planner.checkpoint.header import Entry, open_regular, shown
from planner.dtypes import FLOATS, float_dtype
from planner.errors import CheckpointError, FileUnreadable

__all__ = ["Sidecar", "Unsound", "inside", "open_sidecar"]

_MOST_ELEMENTS = 2**28
_LARGEST_FILE = 2**36
_CHUNK = 8 * 2**20
_SETTLED = 2 * 10**9  # nanoseconds


class Unsound(ValueError):
    """What is wrong with a file, in words; the caller knows which error of the tree it is."""


@dataclass(frozen=True)
class Sidecar:
    """An open file of arrays."""

    path: Path
    entries: dict[str, Entry]
    """By name."""
    metadata: dict[str, str]
    digest: str
    """BLAKE3 of the whole file."""
    identity: tuple[int, ...]
    """What the file system says of it, while nobody changes it."""
    descriptor: int

    def read(self, name: str) -> NDArray[np.float64]:
        """The numbers of an array, exactly. `name` is one of `entries`.

        Raises `Unsound` for a dtype that is not F16, BF16, F32 or F64, for more than 2^28 elements, for NaN or an
        infinity, and where the file became shorter.
        """
        entry = self.entries[name]
        dtype = float_dtype(entry.dtype)
        if dtype is None:
            raise Unsound(f"the array {shown(name)} holds {entry.dtype}; {', '.join(FLOATS)} can be read")
        if (elements := math.prod(entry.shape)) > _MOST_ELEMENTS:
            raise Unsound(f"the array {shown(name)} has {elements:,} elements; at most 2^28 are read")
        data = bytearray(entry.nbytes)
        done = 0
        while done < len(data):
            count = os.preadv(self.descriptor, [memoryview(data)[done : done + _CHUNK]], entry.begin + done)
            if not count:
                raise Unsound("it became shorter while it was read")
            done += count
        values = dtype.decode_float64(dtype.patterns(data)).reshape(entry.shape)
        if not np.isfinite(values).all():
            raise Unsound(f"the array {shown(name)} holds NaN or an infinity")
        return values


@contextmanager
def open_sidecar(path: Path, *, known: Sidecar | None = None) -> Iterator[Sidecar]:
    """Open a safetensors file and hash it. What is read through it belongs to the digest it has.

    `known` is the same file as it was opened before: it is not hashed again where it has not changed since.

    Raises `Unsound`; also on leaving, where the file changed meanwhile.
    """
    try:
        descriptor = open_regular(path)
        try:
            before = _identity(descriptor)
            if known is not None and known.identity == before:
                found = replace(known, descriptor=descriptor)
            else:
                found = _hashed(path, descriptor)
            yield found
            if not before == _identity(descriptor) == _identity(path):
                raise Unsound("it was changed while it was read")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unsound(error.strerror or str(error)) from None
    except (CheckpointError, FileUnreadable) as error:
        raise Unsound(error.message.removeprefix(f"{path} ").removeprefix(f"{path}: ")) from None


def _hashed(path: Path, descriptor: int) -> Sidecar:
    status = os.fstat(descriptor)
    if status.st_size > _LARGEST_FILE:
        raise Unsound("it has more than 64 GiB")
    header = read_header(path)
    entries = {entry.name: entry for entry in header.entries}
    # A clock that ticks in milliseconds does not tell two changes in one tick apart: what is that new has no identity.
    settled = time.time_ns() - status.st_ctime_ns > _SETTLED
    identity = _identity(descriptor) if settled else ()
    return Sidecar(path, entries, header.metadata, _digest(descriptor), identity, descriptor)


def _identity(file: int | Path) -> tuple[int, ...]:
    found = os.fstat(file) if isinstance(file, int) else file.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _digest(descriptor: int) -> str:
    hasher, done = blake3(), 0
    while chunk := os.pread(descriptor, _CHUNK, done):
        hasher.update(chunk)
        done += len(chunk)
    return "blake3:" + hasher.hexdigest()


def inside(folder: Path, name: str) -> Path:
    """The path that `name` means for a plan in `folder`: an absolute one as it is, another one inside the folder.

    Raises `Unsound` where a relative one leads out of the folder, by `..` or through a link.
    """
    path = Path(name)
    if not name.isprintable():
        raise Unsound("the path holds characters that cannot be printed")
    if path.is_absolute():
        return path
    if ".." in path.parts:
        raise Unsound("the path climbs with `..`; give an absolute path for what lies elsewhere")
    try:
        found, around = (folder / path).resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:
        raise Unsound(f"the path cannot be followed: {error}") from None
    if not found.is_relative_to(around):
        raise Unsound("a link leads out of the plan's folder; give an absolute path for what lies elsewhere")
    return found
