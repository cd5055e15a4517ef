"""Writing files: whole or not at all, with the right mode, and every error in the planner's words."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import fsio
from planner.errors import Locked, NoSpace, ReadOnly, StorageError, UnsafeInPlace

CALLS = ["open", "write", "fchmod", "fsync", "replace"]


def _failing(monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(fsio.os, call, fail)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["EIO", "^C"])
def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        _failing(patch, call, error)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            fsio.replace_file(path, b"new")
    assert os.listdir(tmp_path) == ["plan.json"]
    assert path.read_bytes() == b"old"


def test_a_replacement_is_one_rename_of_a_file_that_is_complete_and_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    order: list[str] = []
    for call in ("fsync", "replace", "write"):
        real = getattr(os, call)

        def recorded(*arguments: Any, call: str = call, real: Any = real) -> Any:
            order.append(call)
            if call == "replace":
                assert Path(arguments[0]).read_bytes() == b"new"
                assert path.read_bytes() == b"old"
            return real(*arguments)

        monkeypatch.setattr(fsio.os, call, recorded)
    fsio.replace_file(path, b"new")
    assert order == ["write", "fsync", "replace", "fsync"]  # the file before its name, the folder after it
    assert path.read_bytes() == b"new"


def test_a_replacement_keeps_the_mode_that_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    fsio.replace_file(path, b"1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    fsio.replace_file(path, b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fsio.replace_file(path, b"3", mode=0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_replacement_takes_over_the_temporary_file_of_a_dead_process_with_the_same_number(tmp_path: Path) -> None:
    (tmp_path / f".plan.json.{os.getpid()}.tmp").write_bytes(b"left behind")
    fsio.replace_file(tmp_path / "plan.json", b"new")
    assert os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EFBIG, NoSpace),
        (errno.EROFS, ReadOnly),
        (errno.EACCES, ReadOnly),
        (errno.EPERM, ReadOnly),
        (errno.EIO, StorageError),
        (errno.ENAMETOOLONG, StorageError),
    ],
)
def test_errors_of_the_system_leave_in_the_planners_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    with monkeypatch.context() as patch:
        _failing(patch, "write", OSError(number, os.strerror(number)))
        with pytest.raises(StorageError) as caught:
            fsio.create_file(tmp_path / "file", [b"x"])
    assert type(caught.value) is kind
    assert caught.value.exit_status == 7
    assert str(tmp_path / "file") in caught.value.message
    assert caught.value.hint


def test_an_error_names_the_file_that_the_system_names(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        fsio.create_file(tmp_path / "missing" / "file", [b"x"])


def test_a_new_file_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(StorageError):
        fsio.create_file(tmp_path / "file", [b"x"])
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(fsio.os, "write", lambda descriptor, data: real(descriptor, bytes(data[:3])))
    fsio.create_file(tmp_path / "file", [b"0123456789", memoryview(b"abcdef")])
    assert (tmp_path / "file").read_bytes() == b"0123456789abcdef"


def test_a_copy_has_bytes_mode_and_times_of_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(100_000))
    source.chmod(0o640)
    os.utime(source, ns=(1_000_000_000, 2_000_000_000))
    fsio.copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert target.stat().st_mtime_ns == 2_000_000_000
    assert target.stat().st_ino != source.stat().st_ino


def test_a_copy_may_share_extents_where_the_file_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clone(writer: int, request: int, reader: int) -> int:
        os.write(writer, os.pread(reader, 100, 0))
        return 0

    monkeypatch.setattr(fsio.fcntl, "ioctl", clone)
    (tmp_path / "a").write_bytes(b"shared")
    fsio.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"shared"


def test_only_regular_files_are_copied(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"):
        fsio.copy_file(tmp_path / "pipe", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_file_with_one_name_is_linked_and_one_with_two_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    fsio.link_or_copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")
    fsio.link_or_copy_file(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "a").samefile(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"x"


def test_a_symbolic_link_is_copied_as_the_file_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    fsio.link_or_copy_file(tmp_path / "link", tmp_path / "b")
    assert not (tmp_path / "b").is_symlink()
    assert (tmp_path / "b").read_bytes() == b"x"


def test_where_links_are_not_possible_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, "link", OSError(errno.EXDEV, "Invalid cross-device link"))
    (tmp_path / "a").write_bytes(b"x")
    fsio.link_or_copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x"
    _failing(monkeypatch, "link", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StorageError):
        fsio.link_or_copy_file(tmp_path / "a", tmp_path / "c")


def test_a_folder_like_a_read_only_one_can_be_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o555)
    fsio.make_folder(tmp_path / "b", like=tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o755
    fsio.make_folder(tmp_path / "c")
    assert (tmp_path / "c").is_dir()


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


def test_an_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    fsio.exchange_folders(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path / "a") == ["b"]
    assert os.listdir(tmp_path / "b") == ["a"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSYS, UnsafeInPlace),
        (errno.EINVAL, UnsafeInPlace),
        (errno.EXDEV, UnsafeInPlace),
        (errno.EACCES, ReadOnly),
        (errno.EIO, StorageError),
    ],
)
def test_an_exchange_that_is_not_possible_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    library = SimpleNamespace(renameat2=lambda *_: -1)
    monkeypatch.setattr(
        fsio, "ctypes", SimpleNamespace(CDLL=lambda *_, **__: library, get_errno=lambda: number), raising=True
    )
    with pytest.raises(StorageError) as caught:
        fsio.exchange_folders(tmp_path / "a", tmp_path / "b")
    assert type(caught.value) is kind


def test_an_exchange_is_refused_where_the_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsio, "ctypes", SimpleNamespace(CDLL=lambda *_, **__: SimpleNamespace()))
    with pytest.raises(UnsafeInPlace, match="cannot swap"):
        fsio.exchange_folders(tmp_path / "a", tmp_path / "b")


def test_removing_what_is_not_there_is_no_error_and_a_failure_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsio.remove_tree(tmp_path / "nothing")

    def fail(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(fsio.shutil, "rmtree", fail)
    with pytest.raises(ReadOnly):
        fsio.remove_tree(tmp_path)


def test_space_is_asked_for_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsio.require_space(tmp_path, 1)
    monkeypatch.setattr(fsio.shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(NoSpace, match=r"1,000 bytes are needed .* 999 are free"):
        fsio.require_space(tmp_path, 1000)
    fsio.require_space(tmp_path, 999)


def test_ensure_folder_makes_parents_and_minds_none_that_are_there(tmp_path: Path) -> None:
    fsio.ensure_folder(tmp_path / "a" / "b")
    fsio.ensure_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        fsio.ensure_folder(tmp_path / "file" / "b")


def test_a_lock_names_its_holder_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with fsio.lock(path):
        with pytest.raises(Locked, match=f"process {os.getpid()} ") as caught, fsio.lock(path):
            pytest.fail("locked twice")
        assert caught.value.exit_status == 8
        assert path.exists()
    assert not path.exists()
    with fsio.lock(path):
        pass


def test_a_lock_whose_file_is_removed_between_open_and_flock_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, calls = tmp_path / "lock", fcntl.flock, 0

    def flock(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()  # the previous holder leaves
        if calls == 2:
            path.unlink()  # and the next one comes and takes the name
            path.write_text("1")
        real(descriptor, operation)

    monkeypatch.setattr(fsio.fcntl, "flock", flock)
    with fsio.lock(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert calls == 3


def test_a_lock_can_be_taken_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing could ever clean up what filled it."""
    _failing(monkeypatch, "write", OSError(errno.ENOSPC, "No space left on device"))
    path = tmp_path / "lock"
    with fsio.lock(path), pytest.raises(Locked, match="process unknown"), fsio.lock(path):
        pytest.fail("locked twice")
    assert not path.exists()


def test_a_file_system_without_locks_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fsio.fcntl, "flock", flock)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(StorageError, match="No locks available"), fsio.lock(tmp_path / "lock"):
        pytest.fail("locked")
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("call", ["ftruncate", "write", "unlink"])
def test_an_interrupted_lock_is_not_held_any_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "lock"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the fault hits on leaving
        _failing(patch, call, KeyboardInterrupt())
        with fsio.lock(path):
            pass
    with fsio.lock(path):
        pass


def test_a_lock_is_not_inherited_by_a_child_process(tmp_path: Path) -> None:
    with fsio.lock(tmp_path / "lock"):
        own = [int(name) for name in os.listdir("/dev/fd")]
        inheritable = [number for number in own if number > 2 and _same(number, tmp_path / "lock")]
        assert inheritable
        assert not any(os.get_inheritable(number) for number in inheritable)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def test_a_tree_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x")
    fsio.fsync_folder(tmp_path / "a")
    fsio.remove_tree(tmp_path / "a")
    assert os.listdir(tmp_path) == []
