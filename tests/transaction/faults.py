"""A disk that fails on command: every call by which planner/fsio changes the disk is counted and can be hit.

`Disk` stands in front of `planner.fsio.calls`. It counts the calls that change something, in the order they are made,
and at the chosen one (or from it on) raises, kills the process, or does anything else.
"""

from __future__ import annotations

import errno
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from planner.fsio import calls

__all__ = ["COUNTED", "Disk", "installed", "interrupt", "kill", "refuse", "run_forked"]

COUNTED = tuple(name for name in calls.__all__ if name != "begin_writing_out")  # that is a hint, which may be ignored

ALLOCATING = {
    "create",
    "take_lock",
    "write",
    "fallocate",
    "mkdir",
    "link",
    "setxattr",
    "truncate",
    "clone",
}


def refuse(call: str) -> None:
    """The error that a call of this kind meets on a full or failing disk."""
    number = errno.ENOSPC if call in ALLOCATING else errno.EIO
    raise OSError(number, os.strerror(number))


def interrupt(call: str) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt


def kill(call: str) -> None:
    """kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


class Disk:
    """Counts mutating calls; at number `at` (from 1), or from it on, `fault` is called before the call is made."""

    def __init__(self, at: int = 0, fault: Callable[[str], None] = refuse, *, for_ever: bool = False) -> None:
        self.at, self.fault, self.for_ever = at, fault, for_ever
        self.calls: list[str] = []

    def reached(self, call: str) -> None:
        """Count one call, and fail if it is its turn."""
        self.calls.append(call)
        number = len(self.calls)
        if self.at and (number == self.at or (self.for_ever and number > self.at)):
            self.fault(call)


@contextmanager
def installed(disk: Disk) -> Iterator[Disk]:
    """Let fsio work on `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in COUNTED:
            patch.setattr(calls, name, _counted(disk, name, getattr(calls, name)))
        yield disk


def _counted(disk: Disk, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        disk.reached(name)
        return real(*arguments)

    return call


def run_forked(work: Callable[[], object]) -> int:
    """Run `work` in a child process of its own; its exit status, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests; the child starts none
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
