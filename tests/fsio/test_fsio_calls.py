"""The calls that change a disk, as far as only they know what the system answers."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from planner import fsio
from planner.errors import ReadOnly, StorageError, UnsafeInPlace
from planner.fsio import calls

REFUSED = [
    (errno.ENOSYS, UnsafeInPlace),
    (errno.EINVAL, UnsafeInPlace),
    (errno.EXDEV, UnsafeInPlace),
    (errno.EACCES, ReadOnly),
    (errno.EIO, StorageError),
]


def _library(patch: pytest.MonkeyPatch, number: int = 0, **functions: Any) -> None:
    library = SimpleNamespace(**functions)
    fake = SimpleNamespace(CDLL=lambda *_, **__: library, get_errno=lambda: number, c_int64=int)
    patch.setattr(calls, "ctypes", fake)


@pytest.mark.parametrize(("number", "kind"), REFUSED)
def test_an_exchange_that_is_not_possible_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    _library(monkeypatch, number, renameat2=lambda *_: -1)
    with pytest.raises(StorageError) as caught:
        fsio.exchange_folders(tmp_path / "a", tmp_path / "b")
    assert type(caught.value) is kind


def test_an_exchange_is_refused_where_the_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library(monkeypatch)
    with pytest.raises(UnsafeInPlace, match="cannot swap") as caught:
        fsio.exchange_folders(tmp_path / "a", tmp_path / "b")
    assert "--out" in caught.value.hint


@pytest.mark.parametrize("there", [True, False])
def test_a_large_file_is_written_out_on_the_way_where_the_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("planner.fsio.files._WORTH_FLUSHING", 100)
    functions = {"sync_file_range": lambda _, begin, nbytes, how: asked.append((begin, nbytes))} if there else {}
    _library(monkeypatch, **functions)
    fsio.create_file(tmp_path / "file", [b"x" * 60, b"y" * 60, b"z" * 100, b"w"])
    assert asked == [(0, 120), (120, 100)] * there
    assert (tmp_path / "file").read_bytes() == b"x" * 60 + b"y" * 60 + b"z" * 100 + b"w"


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS])
def test_a_file_that_cannot_share_extents_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    (tmp_path / "a").write_bytes(b"x")
    fsio.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_while_it_shares_extents_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(StorageError):
        fsio.copy_file(tmp_path / "a", tmp_path / "b")


def test_extents_are_asked_for_with_the_number_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda *arguments: asked.append(arguments))
    (tmp_path / "a").write_bytes(b"x")
    with (tmp_path / "a").open("rb") as reader, (tmp_path / "b").open("wb") as writer:
        assert calls.clone(writer.fileno(), reader.fileno())
        # linux/ioctl.h: _IOW(0x94, 9, int), the receiver is the file that is written.
        assert asked == [(writer.fileno(), 1 << 30 | 4 << 16 | 0x94 << 8 | 9, reader.fileno())]


def test_no_link_is_followed_where_something_is_written(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("precious")
    for opened in (calls.create, calls.open_to_write, calls.take_lock):
        with pytest.raises(OSError, match="link"):
            os.close(opened(tmp_path / "link"))
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_every_file_is_closed_in_a_program_that_is_started(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for opened, name in ((calls.create, "a"), (calls.open_to_write, "there"), (calls.take_lock, "b")):
        descriptor = opened(tmp_path / name)
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_each_function_is_one_call() -> None:
    """A fault before or after it is then a fault between two states of the disk."""
    assert calls.__file__
    tree = ast.parse(Path(calls.__file__).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions if not function.name.startswith("_")]
    assert sorted(calls.__all__) == sorted(function.name for function in functions)
    for function in functions:
        assert not [node for node in ast.walk(function) if isinstance(node, (ast.For, ast.While))], function.name
