"""Files that are links, FIFOs or too large, and files that change while they are read."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from builders import write_checkpoint
from folders import INDEX, TENSORS, assert_refused, content, within

from planner.checkpoint import folder, open_checkpoint
from planner.errors import FileUnreadable, NotACheckpoint, ShardMissing, ShardTruncated

# Files that are not files


@pytest.mark.parametrize("shards", [1, 2])
def test_a_fifo_in_place_of_a_shard_does_not_hang(shards: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=shards)
    victim = min(tmp_path.glob("*.safetensors"))
    victim.unlink()
    os.mkfifo(victim)
    assert_refused(tmp_path, NotACheckpoint, "is not a regular file")


def test_a_fifo_in_place_of_the_configuration_does_not_hang(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with within(5), pytest.raises(FileUnreadable, match="not a regular file"):
        open_checkpoint(tmp_path)


def test_a_fifo_in_place_of_the_index_does_not_hang(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    (tmp_path / INDEX).unlink()
    os.mkfifo(tmp_path / INDEX)
    assert_refused(tmp_path, ShardMissing, "not a regular file")


def test_a_folder_in_place_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert_refused(tmp_path, NotACheckpoint, "is not a regular file")


@pytest.mark.parametrize("shards", [1, 2])
def test_a_link_whose_blob_is_gone_is_a_missing_shard(shards: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=shards)
    victim = min(tmp_path.glob("*.safetensors"))
    victim.unlink()
    victim.symlink_to(tmp_path / "blobs" / "gone")
    assert_refused(tmp_path, ShardMissing, victim.name)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_json_file_of_absurd_size_is_not_read_into_memory(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(2**40)  # sparse
    with within(5), pytest.raises((FileUnreadable, ShardMissing), match="at most"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_json_file_that_is_a_link_to_nowhere_is_not_taken_for_absent(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)  # with model.safetensors, which is read where there is no index
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("../../blobs/gone")
    with pytest.raises((FileUnreadable, ShardMissing), match="No such file"):
        open_checkpoint(tmp_path)


def test_a_circle_of_links_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    with within(5), pytest.raises(FileUnreadable, match="symbolic links"):
        open_checkpoint(tmp_path)


def test_a_socket_in_place_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("model.safetensors")
        assert_refused(tmp_path, NotACheckpoint, "is not a regular file")


@pytest.mark.parametrize("shards", [1, 3])
def test_every_file_may_be_a_link_as_in_a_hub_cache(shards: int, tmp_path: Path) -> None:
    real = write_checkpoint(tmp_path / "blobs", TENSORS, shards=shards)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    checkpoint = open_checkpoint(snapshot)
    assert content(checkpoint) == {name: array.tobytes() for name, (_, array) in TENSORS.items()}
    assert [checkpoint.header_bytes(shard.name) for shard in checkpoint.shards] == [
        (real / shard.name).read_bytes()[: shard.header.data_begin] for shard in checkpoint.shards
    ]
    assert checkpoint.warnings == ()


# While it is read


def test_a_shard_that_becomes_shorter_while_it_is_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, TENSORS))
    os.truncate(tmp_path / "model.safetensors", checkpoint.tensors["layers.3.w"].begin + 10)
    with pytest.raises(ShardTruncated, match="became shorter") as refused:
        content(checkpoint)
    assert refused.value.exit_status == 9


def test_a_shard_that_goes_away_while_it_is_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, TENSORS))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileUnreadable, match="No such file"):
        content(checkpoint)


def test_a_disk_that_fails_while_a_shard_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, TENSORS))

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(FileUnreadable, match="Input/output error"):
        content(checkpoint)


def test_reads_that_come_back_short_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, TENSORS))
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, wanted, place: read(descriptor, min(wanted, 5), place))
    assert content(checkpoint, size=32) == {name: array.tobytes() for name, (_, array) in TENSORS.items()}


def test_a_fifo_that_takes_the_place_of_a_shard_after_it_was_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, TENSORS)
    checkpoint = open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    for read in (lambda: content(checkpoint), lambda: checkpoint.header_bytes("model.safetensors")):
        with within(5), pytest.raises(FileUnreadable, match="not a regular file"):
            read()
    monkeypatch.setattr(folder, "_regular", lambda path: path)  # as if it had come between this look and the reading
    with within(5), pytest.raises(FileUnreadable, match="not a regular file"):
        open_checkpoint(tmp_path)


def test_a_header_that_is_cut_or_gone_after_it_was_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, TENSORS))
    os.truncate(tmp_path / "model.safetensors", 20)
    with pytest.raises(ShardTruncated, match="became shorter"):
        checkpoint.header_bytes("model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileUnreadable, match="No such file"):
        checkpoint.header_bytes("model.safetensors")


def test_a_shard_that_shrinks_between_its_length_and_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, TENSORS)
    looked, looks = os.fstat, []

    def shrink(descriptor: int) -> os.stat_result:
        found = looked(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".safetensors"):
            looks.append(found.st_size)
            if len(looks) == 2:  # the first is for the kind of file, the second for its size
                os.truncate(tmp_path / "model.safetensors", 50)
        return found

    monkeypatch.setattr(os, "fstat", shrink)
    assert_refused(tmp_path, ShardTruncated, "its header alone claims")
    assert min(looks) > 50
