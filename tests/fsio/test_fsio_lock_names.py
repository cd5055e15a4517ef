"""A name that a lock needs, and that something else has: it is left as it is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from lock_holders import without_flock

from planner import fsio
from planner.errors import StorageError
from planner.fsio import calls
from planner.fsio.locking import Holder

KEPT = b"somebody's bytes"


def _hard_link(path: Path) -> None:
    (path.parent / "victim").write_bytes(KEPT)
    path.hardlink_to(path.parent / "victim")


def _link(path: Path) -> None:
    (path.parent / "victim").write_bytes(KEPT)
    path.symlink_to("victim")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
@pytest.mark.parametrize("make", [_hard_link, _link, _fifo, _folder])
def test_what_is_no_lock_file_is_refused_and_kept(path: Path, make, flock: bool, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    if not flock:
        without_flock(monkeypatch)
    make(path)
    before = sorted((entry.name, entry.lstat()[:9]) for entry in path.parent.iterdir())
    with pytest.raises(StorageError, match="no lock of this program") as caught, fsio.lock(path):
        pytest.fail("locked")
    assert sorted((entry.name, entry.lstat()[:9]) for entry in path.parent.iterdir()) == before
    if make in (_hard_link, _link):
        assert (path.parent / "victim").read_bytes() == KEPT
    command = re.search("`(.*)`", caught.value.hint)
    assert command
    subprocess.run(["bash", "-c", command[1]], check=True)
    with fsio.lock(path):
        assert Holder.read(path.read_bytes())
    if make in (_hard_link, _link):
        assert (path.parent / "victim").read_bytes() == KEPT


def test_a_second_name_given_between_look_and_open_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(KEPT)
    real = calls.open_to_write

    def late(name: Path) -> int:
        name.with_name("victim").hardlink_to(name)
        return real(name)

    monkeypatch.setattr(calls, "open_to_write", late)
    with pytest.raises(StorageError, match="other names"), fsio.lock(path):
        pytest.fail("locked")
    assert path.read_bytes() == KEPT
