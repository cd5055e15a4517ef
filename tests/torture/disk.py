"""Stand in front of `planner.fsio.calls`: see every call that changes a disk, and decide what becomes of it.

A hook gets the number of the call (from 1), its name, the real function and its arguments, and gives back what the
planner is to get. `Dead` is a process that was killed: from then on no call changes anything, whatever runs in
`finally`, so that thousands of kills need no process each. Real kills of real processes are those of `strace_sweeps`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from planner.fsio import calls

__all__ = ["COUNTED", "Dead", "Hook", "dead_at", "failing_at", "installed", "leave_at", "watched"]

COUNTED = tuple(name for name in calls.__all__ if name != "begin_writing_out")  # that is a hint, which may be ignored
Hook = Callable[[int, str, Callable[..., Any], tuple[Any, ...]], Any]


class Dead(BaseException):
    """The process was killed here."""


@contextmanager
def installed(hook: Hook) -> Iterator[list[str]]:
    """Let fsio go through `hook`; gives the names of the calls so far."""
    seen: list[str] = []
    one_at_a_time = threading.RLock()
    real = {name: getattr(calls, name) for name in COUNTED}

    def standing_in(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with one_at_a_time:  # files are fsynced by a thread of their own
                seen.append(name)
                return hook(len(seen), name, real[name], arguments)

        return call

    for name in COUNTED:
        setattr(calls, name, standing_in(name))
    try:
        yield seen
    finally:
        for name, function in real.items():
            setattr(calls, name, function)


def watched(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Let everything through."""
    return real(*arguments)


def dead_at(at: int) -> Hook:
    """Be killed before call `at`."""

    def hook(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if number >= at:
            raise Dead
        return real(*arguments)

    return hook


def leave_at(at: int) -> Hook:
    """End the process before call `at`, for a process of its own."""

    def hook(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if number == at:
            os._exit(137)
        return real(*arguments)

    return hook


def failing_at(at: int, code: int = errno.EIO, *, for_ever: bool = False) -> Hook:
    """Fail call `at` with this error number; `for_ever`, and every later one."""

    def hook(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if number == at or (for_ever and number > at):
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    return hook
