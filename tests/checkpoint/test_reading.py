"""Reading pieces of tensors: the right bytes, one descriptor, and errors that name the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_checkpoint

from planner.checkpoint import Checkpoint, TensorReader, open_checkpoint
from planner.errors import FileUnreadable, ShardTruncated


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    tensors = {f"t{number}": ("BF16", np.arange(50, dtype="<u2") + 100 * number) for number in range(4)}
    return open_checkpoint(write_checkpoint(tmp_path / "model", tensors, shards=2))


def read(reader: TensorReader, checkpoint: Checkpoint, name: str, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    reader.read_into(memoryview(buffer), checkpoint.tensors[name], offset)
    return bytes(buffer)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_piece_of_every_tensor_in_any_order(checkpoint: Checkpoint) -> None:
    with TensorReader(checkpoint) as reader:
        for offset, size in ((0, 100), (3, 20), (99, 1), (100, 0), (0, 1)):
            for name in ("t0", "t1", "t2", "t3", "t0"):
                number = int(name[1:])
                whole = (np.arange(50, dtype="<u2") + 100 * number).tobytes()
                assert read(reader, checkpoint, name, offset, size) == whole[offset : offset + size]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors as Linux tells them")
def test_one_descriptor_is_open_at_a_time_and_none_in_the_end(checkpoint: Checkpoint) -> None:
    before = descriptors()
    with TensorReader(checkpoint) as reader:
        for name in ("t0", "t1", "t2", "t3") * 3:
            read(reader, checkpoint, name, 0, 10)
            assert descriptors() == before + 1
    assert descriptors() == before
    reader.close()
    assert descriptors() == before


def test_short_reads_are_continued(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:7]], at))
    with TensorReader(checkpoint) as reader:
        assert read(reader, checkpoint, "t2", 1, 98) == (np.arange(50, dtype="<u2") + 200).tobytes()[1:99]


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "no advice here"), AttributeError("posix_fadvise")])
def test_a_system_that_takes_no_advice(
    error: Exception, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    with TensorReader(checkpoint) as reader:
        assert len(read(reader, checkpoint, "t0", 0, 100)) == 100


def test_a_file_that_became_shorter_or_went_away(checkpoint: Checkpoint) -> None:
    shard = checkpoint.path / checkpoint.tensors["t0"].shard
    with TensorReader(checkpoint) as reader:
        read(reader, checkpoint, "t0", 0, 10)
        os.truncate(shard, shard.stat().st_size - 150)
        with pytest.raises(ShardTruncated, match=shard.name):
            read(reader, checkpoint, "t2", 0, 100)
        assert len(read(reader, checkpoint, "t0", 0, 10)) == 10
    shard.unlink()
    with TensorReader(checkpoint) as reader, pytest.raises(FileUnreadable, match=f"{shard.name}: No such file"):
        read(reader, checkpoint, "t0", 0, 10)
    shard.mkdir()
    with TensorReader(checkpoint) as reader, pytest.raises(FileUnreadable, match="not a regular file"):
        read(reader, checkpoint, "t0", 0, 10)


def test_a_failing_disk(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with TensorReader(checkpoint) as reader, pytest.raises(FileUnreadable, match="Input/output error"):
        read(reader, checkpoint, "t0", 0, 10)
