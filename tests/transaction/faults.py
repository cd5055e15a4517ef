"""A disk that fails on command: every call by which planner/fsio.py changes the disk is counted and can be hit.

`Disk` stands in for the modules os, shutil and ctypes inside fsio. It counts the calls that change something, in the
order they are made, and at the chosen one (or from it on) raises, kills the process, or does anything else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from planner import fsio

__all__ = ["Disk", "installed", "interrupt", "kill", "refuse", "run_forked"]

COUNTED = (
    "write",
    "fsync",
    "fchmod",
    "utime",
    "ftruncate",
    "mkdir",
    "makedirs",
    "link",
    "rename",
    "replace",
    "unlink",
    "rmdir",
)


def refuse(call: str) -> None:
    """The error that a call of this kind meets on a full or failing disk."""
    number = errno.ENOSPC if call in {"open", "write", "mkdir", "makedirs", "link", "ftruncate"} else errno.EIO
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
        self.os, self.shutil, self.ctypes = _Os(self), _Shutil(self), _Ctypes(self)

    def reached(self, call: str) -> None:
        """Count one call, and fail if it is its turn."""
        self.calls.append(call)
        number = len(self.calls)
        if self.at and (number == self.at or (self.for_ever and number > self.at)):
            self.fault(call)


class _Os:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in COUNTED:
            return real

        def counted(*arguments: Any, **options: Any) -> Any:
            self._disk.reached(name)
            return real(*arguments, **options)

        return counted

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            self._disk.reached("open")
        return os.open(path, flags, mode)


class _Shutil:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(shutil, name)

    def rmtree(self, path: Path) -> None:
        """As shutil's: stops at the first error, and each removal is a call of its own."""
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        for root, folders, names in os.walk(path, topdown=False):
            for name in sorted(names):
                self._disk.reached("unlink")
                os.unlink(os.path.join(root, name))
            for name in sorted(folders):
                self._disk.reached("rmdir")
                os.rmdir(os.path.join(root, name))
        self._disk.reached("rmdir")
        os.rmdir(path)


class _Ctypes:
    """Only what exchange_folders uses; a fault shows as a failed call with its number in errno."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._errno = 0

    def CDLL(self, name: None, use_errno: bool) -> Any:
        libc = ctypes.CDLL(name, use_errno=use_errno)

        class Library:
            @staticmethod
            def renameat2(*arguments: Any) -> int:
                try:
                    self._disk.reached("exchange")
                except OSError as error:
                    self._errno = error.errno or 0
                    return -1
                done = int(libc.renameat2(*arguments))
                self._errno = ctypes.get_errno()
                return done

        return Library

    def get_errno(self) -> int:
        return self._errno


@contextmanager
def installed(disk: Disk) -> Iterator[Disk]:
    """Let fsio work on `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsio, "os", disk.os)
        patch.setattr(fsio, "shutil", disk.shutil)
        patch.setattr(fsio, "ctypes", disk.ctypes)
        yield disk


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
