"""A lock file, and where it may be looked at from."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lock_holders import without_flock


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A lock file; whatever happens, no descriptor of it stays open."""
    before = len(os.listdir("/dev/fd"))
    yield tmp_path / "lock"
    assert len(os.listdir("/dev/fd")) == before


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no flock, as some that lie on another machine."""
    without_flock(monkeypatch)


@pytest.fixture(params=[["--mount-proc"], []], ids=["its own proc", "the proc of the machine"])
def container(request: pytest.FixtureRequest) -> list[str]:
    """What to put before a command to run it as process 1 of a space of process numbers of its own."""
    start = ["unshare", "--pid", "--fork", "--kill-child", *request.param]
    try:
        probe = subprocess.run([*start, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if probe.returncode:
        pytest.skip(f"no new space of process numbers may be made here: {probe.stderr.decode().strip()}")
    return start
