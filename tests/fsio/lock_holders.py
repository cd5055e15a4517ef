"""Processes that hold a lock, and file systems on which flock is unknown."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from disks import forked

from planner import fsio
from planner.errors import Locked
from planner.fsio.locking import Holder

__all__ = ["REPOSITORY", "held", "is_free", "without_flock"]

REPOSITORY = Path(__file__).parents[2]


def without_flock(patch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    """Let flock fail, as on some file systems that lie on another machine."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(fcntl, "flock", flock)


def is_free(path: Path) -> bool:
    """Whether the lock can be taken; and then it is whole, and gone afterwards."""
    try:
        with fsio.lock(path):
            assert Holder.read(path.read_bytes()) == replace(Holder.here(), since=json.loads(path.read_text())["since"])
    except Locked:
        return False
    assert os.listdir(path.parent) == []
    return True


@contextmanager
def held(path: Path) -> Iterator[int]:
    """The lock is held by another process, which is killed in the end; gives its number."""
    reading, writing = os.pipe()

    def work() -> None:
        with fsio.lock(path):
            os.write(writing, b"x")
            signal.pause()

    child = forked(work)
    try:
        assert os.read(reading, 1) == b"x"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
