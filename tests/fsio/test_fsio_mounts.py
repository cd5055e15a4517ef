"""What is mounted where, and that the removal of a tree ends where another one begins."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from disks import AS_ROOT

from planner import fsio
from planner.errors import StorageError
from planner.fsio import mounts

Mounting = Callable[..., Path]


@pytest.fixture
def mount() -> Iterator[Mounting]:
    """Mounts something; skips the test where that is not allowed."""
    with ExitStack() as stack:

        def made(place: Path, *options: str) -> Path:
            command = ["mount", *options, str(place)]
            run = subprocess.run(command, capture_output=True, check=False)
            if run.returncode:
                pytest.skip(f"mounting is not allowed here: {run.stderr.decode().strip()}")
            stack.callback(subprocess.run, ["umount", str(place)], check=True)
            return place

        yield made


def _tree(folder: Path) -> Path:
    (folder / "tree" / "a" / "b").mkdir(parents=True)
    (folder / "tree" / "a" / "file").write_text("ours")
    (folder / "tree" / "z").mkdir()
    (folder / "precious" / "deep").mkdir(parents=True)
    (folder / "precious" / "file").write_text("theirs")
    (folder / "precious" / "deep" / "file").write_text("theirs")
    return folder / "tree"


def _contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_nothing_is_mounted_in_an_ordinary_folder(tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    assert fsio.mounted_in(tree) == []
    assert fsio.mounted_from(tree) == []
    assert fsio.mounted_in(tmp_path / "missing") == []


@AS_ROOT
def test_mounts_of_the_same_file_system_on_folders_and_files(tmp_path: Path, mount: Mounting) -> None:
    tree = _tree(tmp_path)
    mount(tree / "a" / "b", "--bind", str(tmp_path / "precious"))
    assert not os.path.ismount(tree / "a" / "b")
    assert fsio.mounted_in(tree) == fsio.mounted_in(tree / "a") == [tree / "a" / "b"]
    assert fsio.mounted_in(tree / "a" / "b") == [tree / "a" / "b"]
    assert fsio.mounted_in(tree / "z") == []
    mount(tree / "a" / "file", "--bind", str(tmp_path / "precious" / "file"))
    mount(tree / "a" / "b" / "deep", "-t", "tmpfs", "none")
    assert fsio.mounted_in(tree) == [tree / "a" / "b" / "deep", tree / "a" / "b", tree / "a" / "file"]
    (tmp_path / "link").symlink_to(tmp_path)
    assert fsio.mounted_in(tmp_path / "link" / "tree") == fsio.mounted_in(tree)


@AS_ROOT
def test_where_else_a_folder_is_seen(tmp_path: Path, mount: Mounting) -> None:
    tree = _tree(tmp_path)
    views = [tmp_path / name for name in ("a view", "view-of-b")]
    for view, source in zip(views, (tree, tree / "a" / "b"), strict=True):
        view.mkdir()
        mount(view, "--bind", str(source))
    (tmp_path / "view-of-file").touch()
    mount(tmp_path / "view-of-file", "--bind", str(tree / "a" / "file"))
    assert fsio.mounted_from(tree) == [*views, tmp_path / "view-of-file"]
    assert fsio.mounted_from(tree / "a" / "b") == [views[1]]
    assert fsio.mounted_from(tmp_path / "precious") == []
    assert fsio.mounted_from(tree / "z") == []


@AS_ROOT
def test_a_source_that_was_removed_is_no_source(tmp_path: Path, mount: Mounting) -> None:
    tree = _tree(tmp_path)
    (tmp_path / "view").mkdir()
    mount(tmp_path / "view", "--bind", str(tree / "z"))
    (tree / "z").rmdir()
    assert fsio.mounted_from(tree) == []
    assert fsio.mounted_in(tree) == []


@AS_ROOT
def test_a_mount_is_seen_by_another_path_to_the_same_folder(tmp_path: Path, mount: Mounting) -> None:
    """The kernel refuses to remove the folder below it, whatever path one comes by."""
    tree = _tree(tmp_path)
    (tmp_path / "other").mkdir()
    mount(tmp_path / "other", "--bind", str(tmp_path), "--make-private")
    mount(tree / "z", "-t", "tmpfs", "none")
    assert tree / "z" in fsio.mounted_in(tmp_path / "other" / "tree")


@AS_ROOT
def test_what_another_mount_covers_is_not_in_the_way(tmp_path: Path, mount: Mounting) -> None:
    (tmp_path / "cover" / "tree").mkdir(parents=True)
    mount(tmp_path / "cover" / "tree", "-t", "tmpfs", "none")
    mount(tmp_path / "cover", "-t", "tmpfs", "none")
    (tmp_path / "cover" / "tree").mkdir()
    assert fsio.mounted_in(tmp_path / "cover" / "tree") == []
    fsio.remove_tree(tmp_path / "cover" / "tree")
    assert os.listdir(tmp_path / "cover") == []


@AS_ROOT
@pytest.mark.parametrize("name", ["two words", "back\\slash\\040", "line\nend\ttab", os.fsdecode(b"\xff\xfe")])
def test_odd_names_are_read_as_the_kernel_writes_them(tmp_path: Path, mount: Mounting, name: str) -> None:
    tree = _tree(tmp_path)
    (tree / name).mkdir()
    mount(tree / name, "--bind", str(tmp_path / "precious"))
    assert fsio.mounted_in(tree) == [tree / name]
    assert fsio.mounted_from(tmp_path / "precious") == [tree / name]


@AS_ROOT
@pytest.mark.parametrize("kind", ["bind", "tmpfs", "file"])
def test_a_tree_with_a_mount_in_it_is_not_removed(tmp_path: Path, mount: Mounting, kind: str) -> None:
    tree, precious = _tree(tmp_path), tmp_path / "precious"
    place = tree / ("a/file" if kind == "file" else "a/b")
    source = precious / "file" if kind == "file" else precious
    mount(place, *(("-t", "tmpfs", "none") if kind == "tmpfs" else ("--bind", str(source))))
    if kind == "tmpfs":
        (place / "file").write_text("theirs")
    before = _contents(tmp_path)
    with pytest.raises(StorageError, match=re.escape(f"mounted on {place}")) as caught:
        fsio.remove_tree(tree)
    assert f"`umount {place}`" in caught.value.hint
    assert _contents(tmp_path) == before
    with pytest.raises(StorageError):
        fsio.remove_tree(place if kind != "file" else tree)
    assert _contents(tmp_path) == before


@AS_ROOT
def test_without_a_table_of_mounts_another_file_system_still_stops_a_removal(
    tmp_path: Path, mount: Mounting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_TABLE", tmp_path / "missing")
    tree = _tree(tmp_path)
    mount(tree / "z", "-t", "tmpfs", "none")
    (tree / "z" / "file").write_text("theirs")
    assert fsio.mounted_in(tree) == []
    with pytest.raises(StorageError, match="mounted on"):
        fsio.remove_tree(tree)
    assert (tree / "z" / "file").read_text() == "theirs"


@AS_ROOT
def test_a_kernel_that_does_not_number_mounts_leaves_the_paths(
    tmp_path: Path, mount: Mounting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_OPENED", tmp_path / "missing")
    tree = _tree(tmp_path)
    mount(tree / "a" / "b", "--bind", str(tmp_path / "precious"))
    assert fsio.mounted_in(tree) == [tree / "a" / "b"]
    assert fsio.mounted_in(tree / "z") == []
    assert fsio.mounted_from(tmp_path / "precious") == []  # cannot be known there


def test_the_table_is_read_once_for_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], mounts._table
    monkeypatch.setattr(mounts, "_table", lambda: read.append(1) or real())
    fsio.remove_tree(_tree(tmp_path))
    assert read == [1]
