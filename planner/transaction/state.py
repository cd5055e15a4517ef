"""Measure a checkpoint folder: the digest of every file, and of every tensor, in one reading."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from planner import fsio
from planner.checkpoint import Checkpoint, digest_file, fingerprint_of
from planner.errors import StorageError
from planner.transaction.types import FileState, State

__all__ = ["LEDGER_FOLDER", "SHARD", "files_of", "folders_of", "measure", "shard_digest"]

LEDGER_FOLDER = ".planner"

SHARD = "shard-blake3:"
"""Before the digest of a shard. In ledgers of versions before 0.3 that is one of the whole file, `blake3:`."""

Progress = Callable[[int], None]


def files_of(folder: Path, *, locked: bool = True) -> Iterator[str]:
    """Every file below `folder`, as a path inside it, sorted; without the ledger.

    Who does not hold the lock (`locked` is False) may see a writer move the folder aside, or remove what it exchanged:
    a file that is gone when it is looked at is left out.

    Raises `StorageError` for anything that is neither file nor folder (a FIFO would make a reader wait for ever), and
    for a link to a folder, which would be lost in a copy or lead in circles.
    """
    for root, _, files in _walked(folder, locked):
        for name in files:
            path = root / name
            with fsio.storage_errors(path):
                try:
                    regular = stat.S_ISREG(path.stat().st_mode)
                except FileNotFoundError:
                    if locked:
                        raise
                    if not path.is_symlink():
                        continue
                    regular = True  # a link that leads nowhere is there
            if not regular:
                raise StorageError(f"{path} is not a regular file", hint="remove it from the checkpoint folder")
            yield path.relative_to(folder).as_posix()


def folders_of(folder: Path, *, locked: bool = True) -> Iterator[str]:
    """Every folder below `folder`, empty ones too, as a path inside it, parents first; without the ledger."""
    for root, folders, _ in _walked(folder, locked):
        for name in folders:
            yield (root / name).relative_to(folder).as_posix()


def _walked(folder: Path, locked: bool) -> Iterator[tuple[Path, list[str], list[str]]]:
    # Not os.walk, which calls itself for each level: a thousand of them are more than Python bears.
    with fsio.storage_errors(folder):
        waiting = [folder]
        while waiting:
            path = waiting.pop()
            try:
                folders, files = _entries(path)
            except FileNotFoundError:
                if locked:
                    raise
                continue
            if path == folder and LEDGER_FOLDER in folders:
                folders.remove(LEDGER_FOLDER)
            for name in folders:
                if (path / name).is_symlink():
                    raise StorageError(
                        f"{path / name} is a link to a folder", hint="remove it from the checkpoint folder"
                    )
            yield path, folders, files
            waiting += [path / name for name in reversed(folders)]


def _entries(path: Path) -> tuple[list[str], list[str]]:
    """The names of the folders in a folder, and those of everything else, sorted."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                kind = folders if entry.is_dir() else files
            except OSError:  # links in a circle
                kind = files
            kind.append(entry.name)
    return sorted(folders), sorted(files)


def measure(checkpoint: Checkpoint, *, progress: Progress | None = None) -> State:
    """The state of a checkpoint folder, from its bytes. Every file is read once; `progress` is told the bytes read."""
    shards = {shard.name: shard for shard in checkpoint.shards}
    tensors: dict[str, str] = {}
    files: dict[str, FileState] = {}
    for name in files_of(checkpoint.path):
        path = checkpoint.path / name
        with fsio.storage_errors(path):
            found = path.stat()
            if name in shards:
                digest = _measure_shard(checkpoint, name, tensors, progress)
            else:
                digest = digest_file(path)
                if progress:
                    progress(found.st_size)
        files[name] = FileState(digest=digest, size=found.st_size, mode=stat.S_IMODE(found.st_mode))
    return State(fingerprint=fingerprint_of(checkpoint, tensors), files=files, tensors=tensors)


def shard_digest(header: bytes, digests: Iterable[str]) -> str:
    """Digest of a shard, from its header as it lies in the file and the digests of its tensors, in the header's order.

    The header says where each tensor lies, and the tensors cover the rest of the file: every byte counts, and none is
    hashed twice, which would take half as long again.
    """
    hasher = blake3(header)
    for digest in digests:
        hasher.update(digest.encode() + b"\n")
    return SHARD + hasher.hexdigest()


def _measure_shard(checkpoint: Checkpoint, name: str, tensors: dict[str, str], progress: Progress | None) -> str:
    """Digest of a shard; those of its tensors go into `tensors`."""
    entries = checkpoint.header(name).entries
    for entry in entries:
        hasher = blake3()
        for chunk in checkpoint.chunks(checkpoint.tensors[entry.name]):
            hasher.update(chunk)
            if progress:
                progress(len(chunk))
        tensors[entry.name] = "blake3:" + hasher.hexdigest()
    return shard_digest(checkpoint.header_bytes(name), (tensors[entry.name] for entry in entries))
