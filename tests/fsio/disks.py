"""Disks to write on: failing on command, with extended attributes, very small; and users who may not write there."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from planner.errors import PlannerError
from planner.fsio import calls

__all__ = ["AS_ROOT", "as_nobody", "cloned", "extended", "fails", "forked", "recorded", "tiny_disk", "with_extended"]

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting, and becoming another user, need root")
NOBODY = 65534


def fails(patch: pytest.MonkeyPatch, call: str, error: int | BaseException) -> None:
    """Let every call of that name fail, with an error of that number."""
    raised = OSError(error, os.strerror(error)) if isinstance(error, int) else error

    def fail(*arguments: Any) -> Any:
        raise raised

    patch.setattr(calls, call, fail)


def recorded(patch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, tuple[Any, ...]]]:
    """The calls of these names, in the order in which they are made."""
    made: list[tuple[str, tuple[Any, ...]]] = []

    def watch(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            made.append((name, arguments))
            return real(*arguments)

        return call

    for name in names:
        patch.setattr(calls, name, watch(name, getattr(calls, name)))
    return made


def cloned(writer: int, reader: int) -> bool:
    """What a file system that can share extents does, as far as a reader can see."""
    size = os.fstat(reader).st_size
    assert os.pwrite(writer, os.pread(reader, size, 0), 0) == size
    return True


def with_extended(path: Path, **values: bytes) -> Path:
    """Give `path` extended attributes of the user; skips the test where the file system has none."""
    try:
        for name, value in values.items():
            os.setxattr(path, f"user.{name}", value)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"no extended attributes on the file system of {path}")
    return path


def extended(path: Path) -> dict[str, bytes]:
    """The extended attributes of the user that `path` has."""
    return {name[5:]: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size; skips the test where it cannot be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def forked(work: Callable[[], object]) -> int:
    """Start `work` in a child process; its number. It exits with 0, or with the status of an error of the planner."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests; the child starts none
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except PlannerError as error:
            status = error.exit_status
        finally:
            os._exit(status)
    return child


def as_nobody(work: Callable[[Path], object]) -> int:
    """Run `work` as a user without rights, in a folder of that user's; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)

        def child() -> None:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            work(Path(folder))

        return os.waitstatus_to_exitcode(os.waitpid(forked(child), 0)[1])
