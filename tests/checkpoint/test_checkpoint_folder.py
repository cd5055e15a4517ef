"""Folders: what is opened, and every way in which a folder is not a checkpoint."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import safetensors.torch
import torch
from builders import random_tensor, write_checkpoint, write_shard

from planner.checkpoint import Checkpoint, open_checkpoint
from planner.errors import (
    CheckpointError,
    ConfigMalformed,
    FileUnreadable,
    HeaderMalformed,
    NotACheckpoint,
    PickleOnly,
    ShardMissing,
    ShardsAmbiguous,
    ShardTruncated,
    UnknownDtype,
)

INDEX = "model.safetensors.index.json"
TENSORS = {f"layers.{n}.w": ("BF16", random_tensor((4, 8), seed=n)) for n in range(4)}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail instead of hanging."""

    def late(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def content(checkpoint: Checkpoint, *, size: int = 2**20) -> dict[str, bytes]:
    return {name: b"".join(checkpoint.chunks(tensor, size=size)) for name, tensor in checkpoint.tensors.items()}


def edit_index(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def assert_refused(folder: Path, error: type[CheckpointError], why: str) -> None:
    with within(5), pytest.raises(error) as refused:
        open_checkpoint(folder)
    assert type(refused.value) is error
    assert why in refused.value.message
    assert refused.value.exit_status == 9
    assert refused.value.hint


# What is opened


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("size", [16, 48, 2**20])
def test_every_tensor_is_read_back_however_it_is_spread_and_cut(shards: int, size: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", TENSORS, shards=shards))
    assert content(checkpoint, size=size) == {name: array.tobytes() for name, (_, array) in TENSORS.items()}
    assert len(checkpoint.shards) == shards
    assert checkpoint.nbytes == 4 * 4 * 8 * 2
    assert all(tensor.elements == 32 for tensor in checkpoint.tensors.values())
    assert max(len(chunk) for chunk in checkpoint.chunks(checkpoint.tensors["layers.0.w"], size=size)) <= size


def test_the_bundled_model_is_what_the_library_reads(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    theirs: dict[str, torch.Tensor] = {}
    for shard in checkpoint.shards:
        theirs |= safetensors.torch.load_file(tiny_model / shard.name)
    assert content(checkpoint) == {
        name: tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in theirs.items()
    }
    assert checkpoint.config == json.loads((tiny_model / "config.json").read_text())
    assert checkpoint.name == "tiny-model"


def test_scalars_and_empty_tensors_are_tensors_too(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"s": ("F32", (), b"1234"), "e": ("F32", (0, 3), b"")})
    checkpoint = open_checkpoint(tmp_path)
    assert content(checkpoint) == {"s": b"1234", "e": b""}
    assert [checkpoint.tensors[name].elements for name in "se"] == [1, 0]


def test_a_single_file_of_another_name_is_the_checkpoint(tmp_path: Path) -> None:
    write_shard(tmp_path / "adapter_model.safetensors", {"a": ("U8", (1,), b"x")})
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_an_index_may_name_the_single_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}))
    assert open_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()


def test_a_file_that_no_loader_takes_for_a_shard_may_lie_beside_an_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    write_shard(tmp_path / "adapter_model.safetensors", {"a": ("U8", (1,), b"x")})
    assert open_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()


def test_without_config_there_is_an_empty_configuration(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": ("U8", (1,), b"x")})
    assert open_checkpoint(tmp_path).config == {}


def test_opening_reads_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)

    def read(*_: object) -> bytes:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(os, "pread", read)
    open_checkpoint(tmp_path)


def test_a_folder_whose_name_is_not_text_has_a_printable_name(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_checkpoint(folder, TENSORS)
    assert open_checkpoint(folder).name == "caf\ufffd"


# What is no folder of weights


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", NotACheckpoint, "does not exist")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_refused(tmp_path / "model.safetensors", NotACheckpoint, "is not a folder")


def test_an_empty_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path, NotACheckpoint, "holds no safetensors file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt", "weights.pkl"])
def test_a_folder_of_pickles_is_refused_and_none_is_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / name)  # whoever opens it hangs
    assert_refused(tmp_path, PickleOnly, name)


def test_pickles_beside_safetensors_do_no_harm(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert open_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO])
def test_a_folder_that_may_not_be_listed_is_unreadable(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[str]:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FileUnreadable, match=os.strerror(error)):
        open_checkpoint(tmp_path)


def test_a_name_too_long_for_the_file_system_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises((FileUnreadable, NotACheckpoint)):
        open_checkpoint(tmp_path / ("x" * 300))


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


# config.json


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": "\xff"}', b"\xef\xbb\xbf{}"]
)
def test_a_broken_configuration_is_refused(text: bytes, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / "config.json").write_bytes(text)
    assert_refused(tmp_path, ConfigMalformed, "config.json")


def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(FileUnreadable, match=r"config\.json"):
        open_checkpoint(tmp_path)


# Index and shards


def test_a_shard_that_the_index_names_but_nobody_fetched(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert_refused(tmp_path, ShardMissing, "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "../other/model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        ".",
        "",
        "a\0.safetensors",
        "model.safetensors/",
        None,
        3,
        ["model.safetensors"],
    ],
)
def test_a_shard_name_that_leads_out_of_the_folder(name: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", TENSORS, shards=2)
    write_checkpoint(tmp_path / "other", TENSORS)
    edit_index(folder, lambda weights: weights.update({"layers.0.w": name}))
    assert_refused(folder, ShardMissing, "which is no file name")


def test_a_shard_name_that_is_no_safetensors_file_is_never_opened(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    os.mkfifo(tmp_path / "weights.bin")
    edit_index(tmp_path, lambda weights: weights.update({"layers.0.w": "weights.bin"}))
    assert_refused(tmp_path, ShardMissing, "weights.bin")


def test_a_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    edit_index(tmp_path, lambda weights: weights.pop("layers.0.w"))
    assert_refused(tmp_path, ShardMissing, "but not in")


def test_a_tensor_that_only_the_index_names(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    edit_index(tmp_path, lambda weights: weights.update({"ghost": "model-00001-of-00002.safetensors"}))
    assert_refused(tmp_path, ShardMissing, "'ghost'")


def test_an_index_that_names_the_wrong_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    edit_index(tmp_path, lambda weights: weights.update({"layers.0.w": "model-00002-of-00002.safetensors"}))
    assert_refused(tmp_path, ShardMissing, "it is not")


@pytest.mark.parametrize("name", ["model.safetensors", "model-00003-of-00003.safetensors"])
def test_a_stale_file_beside_an_index_that_another_loader_would_read(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    write_shard(tmp_path / name, {"layers.0.w": ("U8", (1,), b"x")})
    assert_refused(tmp_path, ShardsAmbiguous, name)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    packed = {name: ("BF16", array.shape, array.tobytes()) for name, (_, array) in TENSORS.items()}
    for number, names in ((1, ["layers.0.w", "layers.2.w"]), (2, ["layers.0.w", "layers.1.w", "layers.3.w"])):
        write_shard(tmp_path / f"model-0000{number}-of-00002.safetensors", {name: packed[name] for name in names})
    assert_refused(tmp_path, ShardsAmbiguous, "'layers.0.w' is in both")


def test_shards_without_their_index(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    (tmp_path / INDEX).unlink()
    assert_refused(tmp_path, ShardMissing, INDEX)


def test_one_shard_of_several_does_not_pass_for_the_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert_refused(tmp_path, ShardMissing, "model-00001-of-00002.safetensors")


def test_one_shard_of_one_is_the_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    assert open_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": "b", "a": "c"}}', "\udcff"],
)
def test_a_broken_index_is_refused(text: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    (tmp_path / INDEX).write_bytes(text.encode(errors="surrogateescape"))
    assert_refused(tmp_path, ShardMissing, INDEX)


@pytest.mark.parametrize("error", [HeaderMalformed, ShardTruncated, UnknownDtype])
def test_a_broken_shard_breaks_the_checkpoint(error: type[CheckpointError], tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    raw = shard.read_bytes()
    damage = {
        HeaderMalformed: raw[:8] + b"[" + raw[9:],
        ShardTruncated: raw[:-1],
        UnknownDtype: raw.replace(b"BF16", b"QQ16"),
    }
    shard.write_bytes(damage[error])
    assert_refused(tmp_path, error, "")


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
