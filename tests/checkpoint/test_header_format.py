"""Safetensors headers: what is unsound is refused by name, what is only odd is read with a warning."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from builders import random_tensor, write_checkpoint, write_shard
from header_files import ONE, entry, written

from planner.checkpoint import encode_header, open_checkpoint
from planner.checkpoint.header import read_header
from planner.errors import FileUnreadable, HeaderMalformed, PickleOnly, ShardTruncated, UnknownDtype

MALFORMED: dict[str, tuple[str | bytes, bytes]] = {
    "a tensor named twice": (ONE[:-1] + "," + ONE[1:], b"1234"),
    "a tensor named twice, F32 then I32": (ONE[:-1] + "," + ONE[1:].replace("F32", "I32"), b"1234"),
    "a tensor named twice, once in escapes": (ONE[:-1] + "," + ONE[1:].replace('"a"', '"\\u0061"'), b"1234"),
    "a metadata key named twice": ('{"__metadata__":{"a":"1","a":"2"}}', b""),
    "metadata twice": ('{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}}', b""),
    "a field named twice": ('{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "data_offsets twice": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}}', b"1234"),
    "a field of their own named twice": (ONE.replace("}}", ',"x":1,"x":2}}'), b"1234"),
    "metadata that is null": ('{"__metadata__":null}', b""),
    "metadata that looks like a tensor": (json.dumps({"__metadata__": entry()}), b"1234"),
    "metadata that is no text": ('{"__metadata__":{"a":1}}', b""),
    "metadata that is a list": ('{"__metadata__":["a"]}', b""),
    "a hole before the first tensor": (json.dumps({"a": entry(offsets=[4, 8])}), bytes(8)),
    "a hole between tensors": (json.dumps({"a": entry(), "b": entry(offsets=[8, 12])}), bytes(12)),
    "an overlap": (json.dumps({"a": entry(), "b": entry(offsets=[0, 4])}), bytes(8)),
    "a partial overlap": (json.dumps({"a": entry(), "b": entry(offsets=[2, 6])}), bytes(6)),
    "an empty tensor beyond the end": (json.dumps({"a": entry(shape=[0], offsets=[8, 8])}), b""),
    "offsets that do not fit the shape": (json.dumps({"a": entry(shape=[2])}), bytes(4)),
    "offsets that run backwards": (json.dumps({"a": entry(offsets=[4, 0])}), bytes(4)),
    "a negative offset": (json.dumps({"a": entry(offsets=[-4, 0])}), bytes(4)),
    "minus zero for an offset": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', bytes(4)),
    "a float for an offset": (json.dumps({"a": entry(offsets=[0.0, 4.0])}), bytes(4)),
    "an exponent for an offset": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4e0]}}', bytes(4)),
    "three offsets": (json.dumps({"a": entry(offsets=[0, 4, 4])}), bytes(4)),
    "one offset": (json.dumps({"a": entry(offsets=[4])}), bytes(4)),
    "an offset beyond 64 bits": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551620]}}', b"1234"),
    "a boolean in the shape": (json.dumps({"a": entry(shape=[True])}), bytes(4)),
    "a boolean for an offset": (json.dumps({"a": entry("U8", [1], [False, True])}), bytes(1)),
    "a negative dimension": (json.dumps({"a": entry(shape=[-1, -1])}), bytes(4)),
    "a float in the shape": (json.dumps({"a": entry(shape=[1.0])}), bytes(4)),
    "an exponent in the shape": ('{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}', bytes(4)),
    "a shape within the shape": (json.dumps({"a": entry(shape=[[1]])}), bytes(4)),
    "null for the shape": (json.dumps({"a": entry(shape=None)}), bytes(4)),
    "a shape that is a number": (json.dumps({"a": entry(shape=1)}), bytes(4)),
    "a product beyond all memory": (json.dumps({"a": entry(shape=[2**40, 2**40])}), bytes(4)),
    "an empty dimension beside an absurd one": (json.dumps({"a": entry(shape=[0, 2**62, 2], offsets=[0, 0])}), b""),
    "a dimension of 2^64-1": ('{"a":{"dtype":"F32","shape":[0,18446744073709551615,2],"data_offsets":[0,0]}}', b""),
    "more dimensions than any array has": (json.dumps({"a": entry(shape=[1] * 65)}), bytes(4)),
    "half a byte": (json.dumps({"a": entry("F4", [1], [0, 1])}), bytes(1)),
    "a dimension beyond 2^53 beside an empty one": (
        json.dumps({"a": entry(shape=[0, 2**53 + 1], offsets=[0, 0])}),
        b"",
    ),
    "a dtype that is an object": (json.dumps({"a": entry({"F32": None})}), bytes(4)),
    "a number for the dtype": (json.dumps({"a": entry(32)}), bytes(4)),
    "no dtype": ('{"a":{"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "a tensor that is a list": ('{"a":["F32",[1],[0,4]]}', bytes(4)),
    "a tensor that is null": ('{"a":null}', b""),
    "nesting that other readers refuse": (json.dumps({"a": entry(x=[[[]]])}), bytes(4)),
    "nested fields of the names we know": (json.dumps({"a": entry(x=entry())}), bytes(4)),
    "nesting as deep as the stack": ("[" * 200_000, b""),
    "objects nested as deep as the stack": ('{"a":' * 200_000, b""),
    "a list": ("[]", b""),
    "no header at all": ("", b""),
    "text after the object": (ONE + "x", bytes(4)),
    "padding with NUL": (ONE.encode() + b"\0\0", bytes(4)),
    "a BOM": (b"\xef\xbb\xbf" + ONE.encode(), bytes(4)),
    "bytes that are not UTF-8": (ONE.replace("a", "\xff").encode("latin-1"), bytes(4)),
    "half a surrogate pair for a name": (ONE.replace('"a"', '"\\ud800"'), bytes(4)),
    "half a surrogate pair in the metadata": ('{"__metadata__":{"a":"\\udc00\\ud83d"}}', b""),
    "half a surrogate pair in a field of their own": (ONE.replace("}}", ',"x":"\\uD83D\\\\uDE00"}}'), bytes(4)),
    "UTF-16": (ONE.encode("utf-16"), bytes(4)),
    "Infinity for an offset": ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}', bytes(4)),
    "an integer of five thousand digits": (ONE.replace("4]", "4" * 5_000 + "]"), bytes(4)),
    "a metadata value of more than 64 KiB": (json.dumps({"__metadata__": {"a": "é" * 2**15 + "x"}}), b""),
    "a metadata key of more than 64 KiB": (json.dumps({"__metadata__": {"k" * (2**16 + 1): ""}}), b""),
    "NaN": ('{"a":NaN}', b""),
    "a name longer than 512 bytes": (json.dumps({"n" * 513: entry()}), bytes(4)),
    "a name longer than 512 bytes in few characters": (json.dumps({"é" * 257: entry()}), bytes(4)),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_header_that_breaks_the_rules_is_refused_by_name(what: str, tmp_path: Path) -> None:
    path = written(tmp_path, *MALFORMED[what])
    with pytest.raises(HeaderMalformed) as refused:
        read_header(path)
    assert refused.value.exit_status == 9
    assert refused.value.hint
    assert str(path) in refused.value.message
    assert len(refused.value.message) < len(str(path)) + 300
    assert refused.value.message.isprintable()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "0 bytes"),
        (b"\x02\0\0", "3 bytes"),
        (struct.pack("<Q", 1000) + b"{}", "its header alone claims 1,008"),
        (struct.pack("<Q", 3) + b"{}", "its header alone claims 11"),
        (struct.pack("<Q", 0x0280) + b"{}", "its header alone claims 648"),
        (struct.pack("<Q", 32 * 2**20) + b"{}", "its header alone claims 33,554,440"),
        (struct.pack("<Q", len(ONE)) + ONE.encode() + b"123", "its header says"),
        (struct.pack("<Q", len(ONE)) + ONE.encode() + b"12345", "1 bytes after the last tensor"),
        (struct.pack("<Q", 2) + b"{}" + b"polyglot", "8 bytes after the last tensor"),
    ],
)
def test_a_file_shorter_or_longer_than_it_says_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ShardTruncated) as refused:
        read_header(path)
    assert why in refused.value.message
    assert refused.value.exit_status == 9


def test_a_dtype_that_the_format_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownDtype, match="F128") as refused:
        read_header(written(tmp_path, json.dumps({"a": entry("F128", [1], [0, 16])}), bytes(16)))
    assert refused.value.exit_status == 9
    assert "BF16" in refused.value.hint


def test_a_file_that_is_not_there_is_unreadable_not_malformed(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match="No such file"):
        read_header(tmp_path / "model.safetensors")


def test_names_are_opaque_and_never_paths(tmp_path: Path) -> None:
    names = ["", "../../etc/passwd", "a\0b", "\x1b[31m", "\u202e", "n" * 512]
    fields = {name: entry(shape=[0], offsets=[0, 0]) for name in names}
    assert [found.name for found in read_header(written(tmp_path, json.dumps(fields))).entries] == names


def test_an_empty_header_is_a_file_without_tensors(tmp_path: Path) -> None:
    assert read_header(written(tmp_path, "{}      ")).entries == ()


def test_tensors_and_metadata_may_be_called_as_fields_are(tmp_path: Path) -> None:
    names = ["dtype", "shape", "data_offsets"]
    fields = {name: entry(offsets=[4 * n, 4 * n + 4]) for n, name in enumerate(names)}
    header = read_header(written(tmp_path, json.dumps(fields | {"__metadata__": dict.fromkeys(names, "x")}), bytes(12)))
    assert [found.name for found in header.entries] == names
    assert header.metadata == dict.fromkeys(names, "x")


def test_a_whole_surrogate_pair_and_what_only_looks_like_half_of_one_are_names(tmp_path: Path) -> None:
    text = '{"\\ud83d\\ude00":%s,"\\\\ud800":%s}' % ((json.dumps(entry(shape=[0], offsets=[0, 0])),) * 2)
    assert [found.name for found in read_header(written(tmp_path, text)).entries] == ["😀", "\\ud800"]


# A pickle under another name

TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_bare_pickle_is_known_by_its_bytes(protocol: int, tmp_path: Path) -> None:
    assert_pickle_refused(tmp_path, bytes([0x80, protocol]) + b"}q\x00X\x01\x00\x00\x00aq\x01K\x01s.")


@pytest.mark.parametrize("content", [TORCH, b"7z\xbc\xaf\x27\x1c\x00\x04", b"\x80\x04\x95\x30" + bytes(7) + b"}."])
def test_an_old_torch_file_and_an_archive_are_known_by_their_bytes(content: bytes, tmp_path: Path) -> None:
    assert_pickle_refused(tmp_path, content)


def test_what_torch_itself_saves_is_known_by_its_bytes(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x")
    assert_pickle_refused(tmp_path, (tmp_path / "x").read_bytes())


def assert_pickle_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content + bytes(1000))
    with pytest.raises(PickleOnly, match="whatever its name says") as refused:
        open_checkpoint(folder)
    assert refused.value.exit_status == 9
    assert "safe_serialization" in refused.value.hint


def test_a_header_whose_length_looks_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    text = ONE + " " * (0x0280 - len(ONE))  # little-endian 0x0280 is b"\x80\x02", as in a pickle of protocol 2
    path = written(tmp_path, text, b"1234")
    assert path.read_bytes().startswith(b"\x80\x02")
    assert len(read_header(path).entries) == 1


# Read, with a warning

ODD = {
    "leading space": (" " * 8 + ONE + " " * 2, b"1234", "white space"),
    "a trailing line break": (ONE + " \n", b"1234", "white space"),
    "a trailing tab": (ONE + "\t ", b"1234", "white space"),
    "a field of their own": (
        json.dumps({"a\x1b[31m\u202e\n": entry(note="x", count=3)}),
        b"1234",
        r"the tensor 'a\x1b[31m\u202e\n' has a field that",
    ),
    "fields of their own": (
        json.dumps({"a": entry(x=None), "b": entry(offsets=[4, 8], x=1.5), "c": entry(offsets=[8, 12])}),
        bytes(12),
        "2 tensors, the first 'a', have fields that",
    ),
    "an unaligned header": (ONE + " ", b"1234", "byte 63, which is no multiple of eight"),
    "an unaligned tensor": (
        json.dumps({"a": entry("U8", [1], [0, 1]), "b\0": entry("BF16", [1], [1, 3]), "c": entry("U8", [1], [3, 4])}),
        b"1234",
        r"the tensor 'b\x00' is not aligned",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_what_old_writers_left_is_read_with_a_warning(what: str, tmp_path: Path) -> None:
    text, data, warning = ODD[what]
    if "unaligned header" not in what:
        text = text.replace("{", "{" + " " * (-len(text) % 8), 1)
    path = written(tmp_path, text, data)
    checkpoint = open_checkpoint(tmp_path)
    assert b"".join(b"".join(checkpoint.chunks(tensor)) for tensor in checkpoint.tensors.values()) == data
    (said,) = checkpoint.warnings
    assert warning in said
    assert said.startswith("model.safetensors: ")
    assert said.isprintable()
    # Written anew it is canonical, and the warning is gone.
    listed = [(tensor.name, tensor.dtype, tensor.shape) for tensor in checkpoint.tensors.values()]
    path.write_bytes(encode_header(sorted(listed, key=lambda item: item[1] == "U8"), {}) + data)
    assert open_checkpoint(tmp_path).warnings == ()


def test_a_sound_checkpoint_has_no_warnings(tiny_model: Path, tmp_path: Path) -> None:
    assert open_checkpoint(tiny_model).warnings == ()
    tensors = {f"w{n}": ("BF16", random_tensor((3, 5), seed=n)) for n in range(3)}
    assert open_checkpoint(write_checkpoint(tmp_path / "m", tensors, shards=2)).warnings == ()


def test_the_warnings_of_every_shard_name_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": ("BF16", random_tensor((2, 2))), "b": ("BF16", random_tensor((2, 2)))}, shards=2)
    for shard in sorted(tmp_path.glob("*.safetensors")):
        raw = shard.read_bytes()
        shard.write_bytes(struct.pack("<Q", struct.unpack("<Q", raw[:8])[0] + 8) + b" " * 8 + raw[8:])
    assert [warning.partition(":")[0] for warning in open_checkpoint(tmp_path).warnings] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_what_ours_writes_is_canonical(tmp_path: Path) -> None:
    raw = encode_header([("é", "F32", (1,)), ("b", "U8", ())], {"format": "pt"})
    assert raw[8:9] == b"{"
    assert raw.rstrip(b" ").endswith(b"}")
    assert len(raw) % 8 == 0
    write_shard(tmp_path / "model.safetensors", {"é": ("F32", (1,), bytes(4)), "b": ("U8", (), b"x")})
    assert read_header(tmp_path / "model.safetensors").warnings == ()
