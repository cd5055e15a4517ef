"""A folder can give what is made in it readers of its own; a copy has those of its source, and never others."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disks import cloned, extended, fails, with_extended

from planner import fsio
from planner.errors import StorageError
from planner.fsio import calls

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
SOMEBODY = 65534


def _list(*, group: int = 0o5, somebody: int = 0o7) -> bytes:
    """An access control list in which one more user has rights (linux/posix_acl_xattr.h)."""
    nobody = 0xFFFFFFFF
    entries = [(1, 7, nobody), (2, somebody, SOMEBODY), (4, group, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _with_list(path: Path, name: str, value: bytes) -> Path:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"no access control lists on the file system of {path}")
    return path


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A source without a list, and a folder that hands one down."""
    (tmp_path / "source").write_bytes(b"weights")
    (tmp_path / "source").chmod(0o640)
    (tmp_path / "folder").mkdir(mode=0o750)
    _with_list(tmp_path, DEFAULT, _list())
    (tmp_path / "shared").mkdir()
    assert ACCESS in os.listxattr(tmp_path / "shared")
    return tmp_path


def _filled(source: Path, target: Path) -> object:
    fsio.reserve_file(target, 10)
    return fsio.fill_file(target, [b"new"], like=source)


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "copied": fsio.copy_file,
    "created": lambda source, target: fsio.create_file(target, [b"new"], like=source),
    "filled": _filled,
}


@pytest.mark.parametrize("reflink", [False, True], ids=["without reflink", "with reflink"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_file_has_no_reader_that_its_source_has_not(
    world: Path, way: Callable[[Path, Path], object], reflink: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reflink:
        monkeypatch.setattr(calls, "clone", cloned)
    target = world / "shared" / "target"
    seen: list[tuple[str, int, bool]] = []

    def watched(name: str) -> None:
        real = getattr(calls, name)

        def call(*arguments: Any) -> Any:
            result = real(*arguments)
            if target.exists():
                seen.append((name, stat.S_IMODE(target.stat().st_mode), ACCESS in os.listxattr(target)))
            return result

        monkeypatch.setattr(calls, name, call)

    for name in calls.__all__:
        if not (reflink and name == "clone"):
            watched(name)
    way(world / "source", target)
    assert seen[0][2], "it was made with a list"
    listed = [mode & 0o077 for _, mode, inherited in seen if inherited]
    assert set(listed) == {0}, "the mask keeps everybody out as long as there is one"
    opened = [name for name, mode, _ in seen if mode & 0o077]
    assert opened[0] == "chmod", "the mode is what lets anybody in"
    assert os.listxattr(target) == os.listxattr(world / "source")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_folder_hands_nothing_down_and_has_no_reader_of_its_own(world: Path) -> None:
    folder = world / "shared" / "stage"
    fsio.make_folder(folder)
    assert not {ACCESS, DEFAULT} & set(os.listxattr(folder))
    fsio.ensure_folder(folder / "a" / "b")
    fsio.create_file(folder / "a" / "file", [b"x"], mode=0o644)
    assert not any({ACCESS, DEFAULT} & set(os.listxattr(path)) for path in folder.rglob("*"))
    inherits = world / "shared" / "inherits"
    inherits.mkdir()
    fsio.attributes_like(inherits, world / "folder")
    assert not {ACCESS, DEFAULT} & set(os.listxattr(inherits))
    assert stat.S_IMODE(inherits.stat().st_mode) == 0o750


def test_lists_of_the_source_are_kept(world: Path) -> None:
    _with_list(world / "source", ACCESS, _list(group=0o4, somebody=0o4))
    fsio.copy_file(world / "source", world / "shared" / "target")
    assert os.getxattr(world / "shared" / "target", ACCESS) == os.getxattr(world / "source", ACCESS)
    _with_list(world / "folder", DEFAULT, _list(somebody=0o1))
    fsio.make_folder(world / "shared" / "stage")
    fsio.attributes_like(world / "shared" / "stage", world / "folder")
    assert os.getxattr(world / "shared" / "stage", DEFAULT) == os.getxattr(world / "folder", DEFAULT)
    assert ACCESS not in os.listxattr(world / "shared" / "stage")


def test_attributes_that_the_source_has_not_are_removed(tmp_path: Path) -> None:
    like, folder = tmp_path / "like", tmp_path / "folder"
    like.mkdir()
    fsio.make_folder(folder)
    with_extended(like, both=b"1")
    with_extended(folder, both=b"2", other=b"3")
    fsio.attributes_like(folder, like)
    assert extended(folder) == {"both": b"1"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EIO])
def test_a_list_that_cannot_be_removed_is_an_error(world: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, "removexattr", number)
    with pytest.raises(StorageError):
        fsio.copy_file(world / "source", world / "shared" / "target")
    assert (world / "shared" / "target").stat().st_mode & 0o077 == 0


def test_other_attributes_that_cannot_be_removed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like, folder = tmp_path / "like", tmp_path / "folder"
    like.mkdir()
    folder.mkdir()
    with_extended(folder, label=b"3")
    fails(monkeypatch, "removexattr", errno.EACCES)
    fsio.attributes_like(folder, like)
    assert extended(folder) == {"label": b"3"}
