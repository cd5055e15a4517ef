"""Folders: what is opened, and every way in which a folder is not a checkpoint."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from builders import write_checkpoint, write_shard
from folders import INDEX, TENSORS, assert_refused, content, edit_index

from planner.checkpoint import open_checkpoint
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


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt", "w.pkl", "w.pickle"]
)
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
        "..\\model.safetensors",
        "C:\\model.safetensors",
        "model\n.safetensors",
        "\x1b[2J.safetensors",
        "\u202esrotcennefas.ledom",
        "model\u200b.safetensors",
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
    assert_refused(tmp_path, ShardMissing, "model-00001-of-00002.safetensors holds it")


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


@pytest.mark.parametrize(
    "name", ["evil\x1b[2J.safetensors", "a\nb.safetensors", "a\\b.safetensors", "caf\udce9.safetensors"]
)
def test_a_lone_file_whose_name_is_no_plain_text_is_refused_and_its_name_escaped(name: str, tmp_path: Path) -> None:
    write_shard(tmp_path / name, {"a": ("U8", (1,), b"x")})
    assert_refused(tmp_path, NotACheckpoint, repr(name))


def test_the_names_of_files_are_escaped_in_every_refusal(tmp_path: Path) -> None:
    write_shard(tmp_path / "a\x1b[2J.safetensors", {"a": ("U8", (1,), b"x")})
    write_shard(tmp_path / "b\u202e.safetensors", {"b": ("U8", (1,), b"x")})
    assert_refused(tmp_path, ShardMissing, r"a\x1b[2J.safetensors, b\u202e.safetensors but no")
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "a\x1b[2J.bin").write_bytes(b"")
    assert_refused(tmp_path, PickleOnly, r"a\x1b[2J.bin")


def test_a_long_or_deep_shard_name_is_refused_in_a_short_message(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    edges = ["[" * depth + "]" * depth for depth in range(850, 1000, 3)]  # of the stack: parsed, but not printed
    for name in ['"' + "x/" * 100_000 + '"', *edges]:
        (tmp_path / INDEX).write_text(f'{{"weight_map":{{"layers.0.w":{name}}}}}')
        with pytest.raises(
            ShardMissing, match=r"shard (of type list|'x/x/.*), which is no file name|nested too deep"
        ) as refused:
            open_checkpoint(tmp_path)
        assert len(refused.value.message) < len(str(tmp_path)) + 300


def test_shards_beside_a_whole_file_without_an_index_are_ambiguous(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)
    write_shard(tmp_path / "model-00001-of-00002.safetensors", {"layers.0.w": ("U8", (1,), b"x")})
    assert_refused(tmp_path, ShardsAmbiguous, "model-00001-of-00002.safetensors")


def test_a_file_that_some_loaders_take_for_a_shard_is_read_past_with_a_warning(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS)
    write_shard(tmp_path / "model.fp16\x1b.safetensors", {"layers.0.w": ("U8", (1,), b"x")})
    (warning,) = open_checkpoint(tmp_path).warnings
    assert warning.startswith(r"model.fp16\x1b.safetensors is not read here")
    write_shard(tmp_path / "model2.safetensors", {"layers.0.w": ("U8", (1,), b"x")})
    (warning,) = open_checkpoint(tmp_path).warnings
    assert "and 1 more are not read here" in warning


@pytest.mark.parametrize(
    ("total", "said"),
    [(255, "255"), (-1, "-1"), (256.5, "256.5"), (2**62, f"{2**62:,}"), ("256", "type str"), ([], "type list")],
)
def test_a_wrong_total_in_the_index_is_read_with_a_warning(total: Any, said: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index | {"metadata": {"total_size": total}}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.nbytes == 256
    (warning,) = checkpoint.warnings
    assert said in warning
    assert "256 bytes" in warning


@pytest.mark.parametrize(
    "metadata", [{"total_size": 256}, {"total_size": 256.0}, {}, {"total_parameters": 1}, None, []]
)
def test_a_right_or_missing_total_is_no_warning(metadata: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TENSORS, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index | {"metadata": metadata}))
    assert open_checkpoint(tmp_path).warnings == ()


@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_any_one_bit_flipped_in_a_json_file_is_read_or_refused_in_words(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, dict(list(TENSORS.items())[:2]), shards=2)
    raw = (tmp_path / name).read_bytes()
    for bit in range(8 * len(raw)):
        content = bytearray(raw)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(content)
        try:
            open_checkpoint(tmp_path)
        except CheckpointError as error:
            message = error.message.removeprefix(str(tmp_path))
        else:
            continue
        assert message.isprintable()
