"""What a copy takes over beside bytes: extended attributes, mode, owner, and times where nothing was changed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import AS_ROOT, as_nobody, cloned, extended, fails, with_extended

from planner import fsio
from planner.errors import NoSpace
from planner.fsio import calls

VALUES = {"origin": b"somewhere", "bytes": bytes(range(256)), "empty": b""}
OLD = (1_000_000_000, 2_000_000_123)


def _filled(source: Path, target: Path) -> object:
    fsio.reserve_file(target, 10)
    return fsio.fill_file(target, [b"new"], like=source)


def _created(source: Path, target: Path) -> object:
    return fsio.create_file(target, [b"new"], like=source)


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "copied": fsio.copy_file,
    "shared": fsio.share_file,
    "created": _created,
    "filled": _filled,
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"old bytes")
    path.chmod(0o604)
    os.utime(path, ns=OLD)
    return path


@pytest.mark.parametrize("reflink", [False, True], ids=["without reflink", "with reflink"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_file_keeps_mode_and_extended_attributes(
    source: Path, way: Callable[[Path, Path], object], reflink: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reflink:
        monkeypatch.setattr(calls, "clone", cloned)
    with_extended(source, **VALUES)
    target = source.with_name("target")
    way(source, target)
    assert extended(target) == VALUES
    assert stat.S_IMODE(target.stat().st_mode) == 0o604


@pytest.mark.parametrize("way", WAYS)
def test_only_an_untouched_copy_has_the_times_of_its_source(
    source: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rsync compares size and time: a changed file of the same size must not look like the old one."""
    fails(monkeypatch, "link", errno.EXDEV)
    target = source.with_name("target")
    WAYS[way](source, target)
    assert (target.stat().st_mtime_ns == OLD[1]) == (way in ("copied", "shared"))
    if way in ("copied", "shared"):
        assert target.stat().st_atime_ns == OLD[0]


def test_a_folder_gets_mode_and_extended_attributes_of_another(tmp_path: Path) -> None:
    like, folder = tmp_path / "like", tmp_path / "folder"
    like.mkdir()
    fsio.make_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with_extended(like, **VALUES)
    like.chmod(0o2555)
    fsio.attributes_like(folder, like, writable=True)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2755
    (folder / "file").touch()
    fsio.attributes_like(folder, like)
    assert extended(folder) == VALUES
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2555


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EPERM, errno.EACCES])
def test_attributes_that_cannot_be_set_there_are_left_out(
    source: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_extended(source, origin=b"x")
    fails(monkeypatch, "setxattr", number)
    fsio.copy_file(source, source.with_name("target"))
    assert source.with_name("target").read_bytes() == b"old bytes"


def test_attributes_for_which_there_is_no_room_are_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_extended(source, origin=b"x")
    fails(monkeypatch, "setxattr", errno.ENOSPC)
    with pytest.raises(NoSpace):
        fsio.copy_file(source, source.with_name("target"))


@AS_ROOT
def test_root_keeps_the_owner(source: Path) -> None:
    os.chown(source, 1234, 2345)
    source.chmod(0o6750)
    fsio.copy_file(source, source.with_name("target"))
    found = source.with_name("target").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o6750)


@AS_ROOT
def test_a_user_owns_the_copy_of_a_file_of_somebody_else(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        fsio.copy_file(Path("/etc/passwd"), folder / "copy")
        assert (folder / "copy").stat().st_uid == os.getuid() != 0

    assert as_nobody(work) == 0
