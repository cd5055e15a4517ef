"""Room on the disk, asked for before the first byte."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from disks import AS_ROOT, tiny_disk

from planner import fsio
from planner.errors import NoSpace, StorageError
from planner.fsio import room


def test_space_is_asked_for_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsio.require_space(tmp_path, 1)
    monkeypatch.setattr(room.os, "statvfs", lambda _: SimpleNamespace(f_bavail=333, f_frsize=3))
    assert fsio.free_bytes(tmp_path) == 999
    with pytest.raises(NoSpace, match=r"1,000 bytes are needed .* 999 are free") as caught:
        fsio.require_space(tmp_path, 1000)
    assert "--out" in caught.value.hint
    with pytest.raises(NoSpace) as caught:
        fsio.require_space(tmp_path, 1000, otherwise="keep less")
    assert "keep less" in caught.value.hint
    fsio.require_space(tmp_path, 999)


@AS_ROOT
def test_the_free_bytes_are_those_that_can_be_written(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "1m") as disk:
        assert fsio.free_bytes(disk) == shutil.disk_usage(disk).free == 2**20
        (disk / "a").write_bytes(bytes(2**19))
        assert fsio.free_bytes(disk) == 2**19


def test_the_space_of_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="missing"):
        fsio.free_bytes(tmp_path / "missing")


def test_the_folder_of_a_result_must_be_there(tmp_path: Path) -> None:
    fsio.require_folder_of(tmp_path / "new")
    with pytest.raises(StorageError, match="does not exist"):
        fsio.require_folder_of(tmp_path / "missing" / "new")
    assert os.listdir(tmp_path) == []
