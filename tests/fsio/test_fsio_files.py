"""Files: whole or not at all, durable before they count, and never more names than are safe."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import AS_ROOT, cloned, fails, forked, recorded, tiny_disk

from planner import fsio
from planner.errors import NoSpace, StorageError
from planner.fsio import calls

CALLS = ["create", "write", "chmod", "fsync", "rename"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["EIO", "^C"])
def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        fails(patch, call, error)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            fsio.replace_file(path, b"new")
    assert os.listdir(tmp_path) == ["plan.json"]
    assert path.read_bytes() == b"old"


def test_a_replacement_is_one_rename_of_a_file_that_is_complete_and_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "plan.json", calls.rename
    path.write_bytes(b"old")

    def rename(source: Path, target: Path) -> None:
        assert source.read_bytes() == b"new"
        assert path.read_bytes() == b"old"
        real(source, target)

    monkeypatch.setattr(calls, "rename", rename)
    made = recorded(monkeypatch, "write", "fsync", "rename")
    fsio.replace_file(path, b"new")
    # the file before its name, the folder after it
    assert [name for name, _ in made] == ["write", "fsync", "rename", "fsync"]
    assert path.read_bytes() == b"new"


def test_a_replacement_may_come_in_pieces(tmp_path: Path) -> None:
    fsio.replace_file(tmp_path / "a", (piece for piece in (b"one ", b"", b"two")))
    assert (tmp_path / "a").read_bytes() == b"one two"


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


def test_a_new_file_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    commands: list[Callable[[], object]] = [
        lambda: fsio.create_file(tmp_path / "file", [b"x"]),
        lambda: fsio.reserve_file(tmp_path / "file", 3),
        lambda: fsio.copy_file(Path(__file__), tmp_path / "file"),
        lambda: fsio.share_file(Path(__file__), tmp_path / "file"),
    ]
    for command in commands:
        with pytest.raises(StorageError):
            command()
        assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_file_is_its_owners_alone_until_it_is_whole(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"secret"
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        yield b"more"

    fsio.create_file(tmp_path / "file", chunks(), mode=0o644)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, real_at = calls.write, calls.pwrite
    monkeypatch.setattr(calls, "write", lambda descriptor, data: real(descriptor, bytes(data[:3])))
    monkeypatch.setattr(calls, "pwrite", lambda descriptor, data, at: real_at(descriptor, bytes(data[:3]), at))
    path = tmp_path / "file"
    fsio.create_file(path, [b"0123456789", memoryview(b"abcdef")])
    assert path.read_bytes() == b"0123456789abcdef"
    with fsio.open_in_place(path) as descriptor:
        fsio.overwrite(descriptor, b"ABCDEFGH", 4)
    assert path.read_bytes() == b"0123ABCDEFGHcdef"
    fsio.fill_file(path, [b"a new one"])
    assert path.read_bytes() == b"a new one"


def test_bytes_are_put_over_others_and_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(20_000_000))
    path.chmod(0o604)
    before = path.stat()
    new = os.urandom(9_000_000)  # more than one piece
    made = recorded(monkeypatch, *(name for name in calls.__all__ if name != "open_to_write"))
    with fsio.open_in_place(path) as descriptor:
        fsio.overwrite(descriptor, memoryview(new), 5_000_001)
        assert [name for name, _ in made] == ["pwrite", "pwrite", "fsync"]
        made.clear()
        fsio.overwrite(descriptor, new[:1], 5_000_001, durable=False)
        assert [name for name, _ in made] == ["pwrite"]
    assert path.read_bytes() == bytes(5_000_001) + new + bytes(20_000_000 - 5_000_001 - len(new))
    after = path.stat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)


def test_a_failed_overwrite_leaves_in_the_planners_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with pytest.raises(StorageError, match="file"), fsio.open_in_place(path):
        pytest.fail("it is not there")
    path.write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(StorageError), fsio.open_in_place(tmp_path / "link"):
        pytest.fail("a link was followed")
    for call in ("pwrite", "fsync"):
        with monkeypatch.context() as patch:
            fails(patch, call, errno.EIO)
            with pytest.raises(StorageError, match="file"), fsio.open_in_place(path) as descriptor:
                fsio.overwrite(descriptor, b"new", 0)


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_durable_at_once_was_fsynced_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """However it came: written, filled, copied, or shared as extents or as one more name."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100)

    def filled(target: Path) -> None:
        fsio.reserve_file(target, 10)
        fsio.fill_file(target, [b"x"], durable=durable)

    def reflinked(target: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(calls, "clone", cloned)
            fsio.share_file(source, target, durable=durable)

    def linked(target: Path) -> None:
        fsio.share_file(source, target, durable=durable)
        assert target.samefile(source)

    ways: list[Callable[[Path], object]] = [
        lambda target: fsio.create_file(target, [b"x"], durable=durable),
        filled,
        lambda target: fsio.copy_file(source, target, durable=durable),
        reflinked,
        linked,
    ]
    synced: list[tuple[int, int]] = []
    monkeypatch.setattr(calls, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, len(made))))
    for number, way in enumerate(ways):
        target = tmp_path / str(number)
        with monkeypatch.context() as patch:
            made = recorded(patch, *(name for name in calls.__all__ if name not in ("fsync", "clone")))
            way(target)
        assert synced == [(target.stat().st_ino, len(made))] * durable
        synced.clear()
    fsio.fsync_file(source)
    assert [inode for inode, _ in synced] == [source.stat().st_ino]


def test_a_copy_has_bytes_mode_and_times_of_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(100_000))
    source.chmod(0o640)
    os.utime(source, ns=(1_000_000_000, 2_000_000_000))
    assert fsio.copy_file(source, target) is False
    assert target.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert target.stat().st_mtime_ns == 2_000_000_000
    assert target.stat().st_ino != source.stat().st_ino


@pytest.mark.parametrize("way", [fsio.copy_file, fsio.share_file])
def test_extents_are_shared_where_the_file_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Callable[..., bool]
) -> None:
    """Rather than a second name, and before any byte is read."""
    monkeypatch.setattr(calls, "clone", cloned)
    made = recorded(monkeypatch, "clone", "write", "link")
    (tmp_path / "a").write_bytes(b"shared")
    taken = way(tmp_path / "a", tmp_path / "b", chunks=(pytest.fail("read") for _ in range(1)))
    assert taken is False
    assert [name for name, _ in made] == ["clone"]
    assert (tmp_path / "b").read_bytes() == b"shared"
    assert not (tmp_path / "a").samefile(tmp_path / "b")


def test_bytes_that_are_read_anyway_are_taken_where_nothing_can_be_shared(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    assert fsio.copy_file(tmp_path / "a", tmp_path / "b", chunks=[b"abc", b"def"]) is True
    assert (tmp_path / "b").read_bytes() == b"abcdef"
    unread = iter([b"abc"])
    assert fsio.share_file(tmp_path / "a", tmp_path / "c", chunks=unread) is False
    assert (tmp_path / "a").samefile(tmp_path / "c")
    assert list(unread) == [b"abc"]
    assert fsio.share_file(tmp_path / "a", tmp_path / "d", chunks=[b"abcdef"]) is True  # it has two names now


def test_only_regular_files_are_copied(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        for way in (fsio.copy_file, fsio.share_file):
            with pytest.raises(StorageError, match="not a regular file"):
                way(tmp_path / name, tmp_path / "b")
            assert not (tmp_path / "b").exists()


def test_a_file_with_one_name_is_linked_and_one_with_two_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    fsio.share_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")
    fsio.share_file(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "a").samefile(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"x"
    assert (tmp_path / "a").stat().st_nlink == 2


def test_a_symbolic_link_is_copied_as_the_file_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    fsio.share_file(tmp_path / "link", tmp_path / "b")
    assert not (tmp_path / "b").is_symlink()
    assert (tmp_path / "b").read_bytes() == b"x"
    assert (tmp_path / "a").stat().st_nlink == 1


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_links_are_not_possible_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fails(monkeypatch, "link", number)
    (tmp_path / "a").write_bytes(b"x")
    assert fsio.share_file(tmp_path / "a", tmp_path / "b", chunks=[b"x"]) is True
    assert (tmp_path / "b").read_bytes() == b"x"


def test_a_disk_that_fails_to_link_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, "link", errno.EIO)
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(StorageError):
        fsio.share_file(tmp_path / "a", tmp_path / "b")


@AS_ROOT
def test_a_reserved_file_has_its_room_even_if_the_disk_fills_up(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "1m") as disk:
        free = fsio.free_bytes(disk)
        fsio.reserve_file(disk / "reserved", free // 2)
        assert (disk / "reserved").stat().st_size == free // 2
        assert fsio.free_bytes(disk) == free - free // 2
        with pytest.raises(NoSpace):
            fsio.create_file(disk / "greedy", [bytes(4096)] * 1000)
        assert fsio.free_bytes(disk) == 0
        content = os.urandom(free // 2)
        fsio.fill_file(disk / "reserved", [content[:1000], content[1000:]])
        assert (disk / "reserved").read_bytes() == content
        with pytest.raises(NoSpace):
            fsio.reserve_file(disk / "another", 4096)


def test_more_than_may_be_reserved_is_no_space(tmp_path: Path) -> None:
    """As a limit on the size of files says; in a child process, since it holds for all of them."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(NoSpace):
            fsio.reserve_file(tmp_path / "a", 1001)
        fsio.reserve_file(tmp_path / "b", 1000)

    assert os.waitpid(forked(work), 0)[1] == 0
    assert (tmp_path / "b").stat().st_size == 1000


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_where_nothing_can_be_reserved_files_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fails(monkeypatch, "fallocate", number)
    fsio.reserve_file(tmp_path / "a", 10)
    fsio.fill_file(tmp_path / "a", [b"0123456789"])
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize("reserved", [0, 3, 6, 5000])
def test_filling_cuts_what_was_reserved_too_much_and_adds_what_was_too_little(tmp_path: Path, reserved: int) -> None:
    path = tmp_path / "file"
    fsio.reserve_file(path, reserved)
    assert path.read_bytes() == bytes(reserved)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fsio.fill_file(path, [b"abc", memoryview(b"def")], mode=0o640)
    assert path.read_bytes() == b"abcdef"
    assert path.stat().st_blocks * 512 <= 4096
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_only_what_was_reserved_is_filled(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        fsio.fill_file(tmp_path / "file", [b"x"])
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "file").symlink_to("precious")
    with pytest.raises(StorageError):
        fsio.fill_file(tmp_path / "file", [b"x"])
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_file_whose_pages_are_forgotten_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    real = os.posix_fadvise

    def advise(descriptor: int, *rest: int) -> None:
        asked.append((os.fstat(descriptor).st_ino, *rest))
        real(descriptor, *rest)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    content = os.urandom(100_000)
    fsio.create_file(tmp_path / "file", [content])
    fsio.forget_cached(tmp_path / "file")
    assert asked == [((tmp_path / "file").stat().st_ino, 0, 0, os.POSIX_FADV_DONTNEED)]
    assert (tmp_path / "file").read_bytes() == content
    with pytest.raises(StorageError):
        fsio.forget_cached(tmp_path / "missing")


def test_removing_a_file_minds_none_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    fsio.remove_file(tmp_path / "a")
    fsio.remove_file(tmp_path / "a")
    assert os.listdir(tmp_path) == []
    fails(monkeypatch, "unlink", errno.EIO)
    with pytest.raises(StorageError):
        fsio.remove_file(tmp_path / "a")


def test_no_file_stays_open_whatever_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    before = len(os.listdir("/dev/fd"))
    for number, call in enumerate(("write", "clone", "chmod", "utime", "fsync", "unlink", "link", "truncate")):
        for way in (fsio.copy_file, fsio.share_file):
            with monkeypatch.context() as patch:
                fails(patch, call, errno.EIO)
                try:
                    way(source, tmp_path / f"{way.__name__}-{number}")
                    fsio.fill_file(tmp_path / f"{way.__name__}-{number}", [b""])
                except StorageError:
                    pass
            assert len(os.listdir("/dev/fd")) == before
        source.unlink()
        source.write_bytes(b"x")
