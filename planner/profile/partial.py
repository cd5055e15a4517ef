"""What a profiling run keeps of the shards it has finished, so that an interrupted one goes on after the last of them.

A cache that cannot be written to is done without: nothing here raises.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from planner import __version__, fsio
from planner.checkpoint import Checkpoint, Shard, digest_bytes
from planner.errors import StorageError
from planner.profile.histograms import HistogramWriter
from planner.profile.pieces import tensor_pieces
from planner.profile.types import TensorProfile

__all__ = ["SETTLED_NS", "PartialRun", "signature_of"]

SETTLED_NS = 2_000_000_000
"""A file that was changed less than this before it was read might change again without its times showing it."""

_TENSORS = TypeAdapter(list[TensorProfile])
_DONE = "tensors.json"


def signature_of(path: Path) -> str:
    """What tells a file from a changed one without reading it: size, times and inode."""
    found = path.stat()
    return f"{path.name} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


class PartialRun:
    """A folder with a folder a shard: its histograms and, written last, `tensors.json`."""

    def __init__(self, cache: Path, checkpoint: Checkpoint, *, spectra: bool, force: bool) -> None:
        run = f"{__version__} {os.path.realpath(checkpoint.path)} spectra={spectra}"
        self._folder = cache / "partial" / _short(run)
        self._checkpoint = checkpoint
        self._usable = True
        self._signature = ""
        self._shards: set[str] = set()
        self._started = 0
        self._writer: HistogramWriter | None = None
        with self._done_without():
            if force:
                fsio.remove_tree(self._folder)
            fsio.ensure_folder(self._folder)

    def kept(self, shard: Shard) -> list[TensorProfile] | None:
        """The tensors of a shard, if an earlier run finished it; else makes ready for them."""
        self._started = time.time_ns()
        try:
            self._signature = signature_of(self._checkpoint.path / shard.name)
        except OSError:  # who reads it will say so
            self._usable = False
            return None
        folder = self._folder / _short(self._signature)
        self._shards.add(folder.name)
        try:
            return _TENSORS.validate_json((folder / _DONE).read_bytes())
        except (OSError, ValueError):
            pass
        with self._done_without():
            fsio.remove_tree(folder)
            fsio.ensure_folder(folder)
            self._writer = HistogramWriter(folder)
        return None

    def histogram(self, name: str, counts: NDArray[np.int64]) -> None:
        """Keep the histogram of a tensor of the shard at hand."""
        with self._done_without():
            if self._usable and self._writer:
                self._writer.add(name, counts)

    def keep(self, shard: Shard, tensors: list[TensorProfile]) -> None:
        """The shard at hand is done; its tensors are written, unless it may have changed on the way."""
        path = self._checkpoint.path / shard.name
        try:
            steady = signature_of(path) == self._signature and path.stat().st_ctime_ns < self._started - SETTLED_NS
        except OSError:  # gone since it was read
            steady = False
        with self._done_without():
            if self._usable and self._writer:
                self._writer.flush()
                if steady:
                    fsio.replace_file(self._folder / _short(self._signature) / _DONE, tensor_pieces(tensors))

    def finish(self, target: Path, profile: Iterator[bytes]) -> None:
        """The run is done: its folder becomes `target`, with `profile.json`. Raises `StorageError`."""
        if not self._usable:
            return
        for path in self._folder.iterdir():
            if path.name in self._shards:
                fsio.remove_file(path / _DONE)
            elif path.is_dir():  # what an interrupted run knew of a shard that has changed since
                fsio.remove_tree(path)
        fsio.replace_file(self._folder / "profile.json", profile)
        fsio.ensure_folder(target.parent)
        fsio.remove_tree(target)
        fsio.publish_folder(self._folder, target)

    @contextmanager
    def _done_without(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            self._usable = False


def _short(text: str) -> str:
    return digest_bytes(os.fsencode(text)).removeprefix("blake3:")[:32]
