"""Folders: one step from the old to the new, and nothing removed that is not inside."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from disks import AS_ROOT, as_nobody, fails, recorded

from planner import fsio
from planner.errors import ReadOnly, StorageError
from planner.fsio import calls


def test_publishing_takes_a_free_name_or_an_empty_folder_only(tmp_path: Path) -> None:
    for name in ("stage", "empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "stage" / "x").write_bytes(b"new")
    (tmp_path / "full" / "x").write_bytes(b"precious")
    with pytest.raises(StorageError):
        fsio.publish_folder(tmp_path / "stage", tmp_path / "full")
    assert (tmp_path / "full" / "x").read_bytes() == b"precious"
    fsio.publish_folder(tmp_path / "stage", tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["empty", "full"]
    assert (tmp_path / "empty" / "x").read_bytes() == b"new"
    fsio.publish_folder(tmp_path / "empty", tmp_path / "free")
    assert sorted(os.listdir(tmp_path)) == ["free", "full"]


def test_an_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    fsio.exchange_folders(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "a") == ["b"]
    assert os.listdir(tmp_path / "b") == ["a"]


@pytest.mark.parametrize(("move", "call"), [(fsio.publish_folder, "rename"), (fsio.exchange_folders, "exchange")])
def test_a_new_name_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, move, call) -> None:  # type: ignore[no-untyped-def]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    real, synced = calls.fsync, []
    made = recorded(monkeypatch, *(name for name in calls.__all__ if name != "fsync"))

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, len(made)))
        real(descriptor)

    monkeypatch.setattr(calls, "fsync", fsync)
    move(tmp_path / "a", tmp_path / "b")
    assert [name for name, _ in made] == [call]
    assert synced == [(tmp_path.stat().st_ino, 1)]  # the folder that holds the name, after the step


def test_a_made_folder_needs_a_free_name(tmp_path: Path) -> None:
    fsio.make_folder(tmp_path / "a")
    with pytest.raises(StorageError):
        fsio.make_folder(tmp_path / "a")
    with pytest.raises(StorageError):
        fsio.make_folder(tmp_path / "missing" / "a")


def test_ensure_folder_makes_parents_and_minds_none_that_are_there(tmp_path: Path) -> None:
    fsio.ensure_folder(tmp_path / "a" / "b")
    fsio.ensure_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "to-a").symlink_to("a")
    fsio.ensure_folder(tmp_path / "to-a" / "c")
    assert sorted(os.listdir(tmp_path / "a")) == ["b", "c"]


def test_ensure_folder_minds_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "file/b", "link", "link/b"):
        with pytest.raises(StorageError):
            fsio.ensure_folder(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_two_may_need_a_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(path: Path, mode: int = 0o777) -> None:
        path.mkdir()
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    monkeypatch.setattr(calls, "mkdir", late)
    fsio.ensure_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def _tree(folder: Path) -> Path:
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "a" / "empty").mkdir()
    for name in ("x", "b/y", "b/c/z"):
        (folder / "a" / name).write_bytes(b"x")
    return folder / "a"


def test_a_tree_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    os.mkfifo(tree / "b" / "pipe")
    (tree / os.fsdecode(b"\xff\xfe")).touch()
    fsio.fsync_folder(tree)
    fsio.remove_tree(tree)
    assert os.listdir(tmp_path) == []
    fsio.remove_tree(tree)
    (tmp_path / "file").touch()
    fsio.remove_tree(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o555)
    (precious / "file").write_bytes(b"x")
    tree = _tree(tmp_path)
    (tree / "to-folder").symlink_to(precious)
    (tree / "b" / "to-file").symlink_to(precious / "file")
    (tree / "to-nothing").symlink_to("nowhere")
    (tree / "upwards").symlink_to("..")
    (tree / "hard").hardlink_to(precious / "file")
    fsio.remove_tree(tree)
    (tmp_path / "link").symlink_to("precious")
    fsio.remove_tree(tmp_path / "link")
    assert os.listdir(tmp_path) == ["precious"]
    assert (precious / "file").read_bytes() == b"x"
    assert precious.stat().st_mode & 0o777 == 0o555


def _read_only_tree_is_removed(folder: Path) -> None:
    tree = _tree(folder)
    (tree / "b" / "y").chmod(0)
    for path, mode in ((tree / "b" / "c", 0), (tree / "b", 0o555), (tree, 0o444)):
        path.chmod(mode)
    fsio.remove_tree(tree)
    assert os.listdir(folder) == []


@AS_ROOT
def test_a_read_only_tree_is_removed_by_its_owner() -> None:
    assert as_nobody(_read_only_tree_is_removed) == 0


def test_a_read_only_tree_is_removed(tmp_path: Path) -> None:
    _read_only_tree_is_removed(tmp_path)


@AS_ROOT
def test_what_others_own_is_not_removed() -> None:
    with tempfile.TemporaryDirectory() as owned:
        tree = _tree(Path(owned))
        Path(owned).chmod(0o755)

        def work(_: Path) -> None:
            with pytest.raises(ReadOnly):
                fsio.remove_tree(tree)

        assert as_nobody(work) == 0
        assert (tree / "b" / "c" / "z").exists()


def test_what_somebody_else_removes_at_the_same_time_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, real = _tree(tmp_path), calls.unlink

    def late(path: Path) -> None:
        path.unlink()
        real(path)

    monkeypatch.setattr(calls, "unlink", late)
    fsio.remove_tree(tree)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["unlink", "rmdir"])
def test_a_removal_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    tree = _tree(tmp_path)
    fails(monkeypatch, call, errno.EROFS)
    with pytest.raises(ReadOnly):
        fsio.remove_tree(tree)
