"""Every error of the operating system, in the planner's words."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from disks import fails

from planner import fsio
from planner.errors import NoSpace, ReadOnly, StorageError

KINDS = [
    (errno.ENOSPC, NoSpace),
    (errno.EDQUOT, NoSpace),
    (errno.EFBIG, NoSpace),
    (errno.EROFS, ReadOnly),
    (errno.EACCES, ReadOnly),
    (errno.EPERM, ReadOnly),
    (errno.EIO, StorageError),
    (errno.ENAMETOOLONG, StorageError),
]


@pytest.mark.parametrize(("number", "kind"), KINDS)
def test_errors_of_the_system_leave_in_the_planners_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StorageError]
) -> None:
    with monkeypatch.context() as patch:
        fails(patch, "write", number)
        with pytest.raises(StorageError) as caught:
            fsio.create_file(tmp_path / "file", [b"x"])
    assert type(caught.value) is kind
    assert caught.value.exit_status == 7
    assert str(tmp_path / "file") in caught.value.message
    assert caught.value.hint


def test_an_error_names_the_file_that_the_system_names(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        fsio.create_file(tmp_path / "missing" / "file", [b"x"])
    with pytest.raises(StorageError, match="source"):
        fsio.copy_file(tmp_path / "source", tmp_path / "target")


def test_a_disk_that_gives_back_other_bytes_is_named() -> None:
    error = fsio.not_as_written("the shard")
    assert error.exit_status == 7
    assert "the shard" in error.message
    assert error.hint
