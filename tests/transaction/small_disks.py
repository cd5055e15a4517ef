"""Disks that are too small or may not be written, and users without rights: for tests that run as root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from faults import run_forked

__all__ = ["AS_ROOT", "NOBODY", "as_nobody", "fill", "mounted", "tmpfs"]

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting, and becoming another user, need root")
NOBODY = 65534


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A mount on `folder`, which is made if it is missing; skips the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    made = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"mounting is not allowed here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def tmpfs(folder: Path, nbytes: int) -> AbstractContextManager[Path]:
    """A file system of that size."""
    return mounted(folder, "-t", "tmpfs", "-o", f"size={nbytes}", "none")


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Write a file that takes all the room there is but `leave` bytes; returns it."""
    path = folder / "somebody-elses.data"
    with path.open("ab", buffering=0) as file:
        while (found := os.statvfs(folder)).f_bavail * found.f_frsize > leave:
            room = found.f_bavail * found.f_frsize - leave
            os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, max(room, 1))
    return path


def as_nobody(work: Callable[[], object]) -> int:
    """Run `work` in a child process of a user without rights; its exit status."""

    def child() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        work()

    return run_forked(child)
