"""Safetensors headers: what ours writes theirs reads, what ours accepts theirs accepts, what is unsound is refused."""

from __future__ import annotations

import json
import struct
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from builders import write_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from planner.checkpoint.header import Header, encode_header, read_header
from planner.dtypes import BITS, bytes_needed
from planner.errors import CheckpointError, FileUnreadable, HeaderMalformed, ShardTruncated, UnknownDtype

ONE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def written(folder: Path, header: str | bytes, data: bytes = b"") -> Path:
    """A file with this text for a header, its length told truly."""
    text = header if isinstance(header, bytes) else header.encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def assert_theirs_agrees(path: Path, header: Header) -> None:
    """The library opens the file and sees the same tensors in it."""
    with safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == {found.name for found in header.entries}
        assert (theirs.metadata() or {}) == header.metadata
        for found in header.entries:
            view = theirs.get_slice(found.name)
            assert (view.get_dtype(), tuple(view.get_shape())) == (found.dtype, found.shape)


def assert_sound_or_refused(path: Path) -> None:
    try:
        header = read_header(path)
    except (CheckpointError, FileUnreadable):
        return
    assert_theirs_agrees(path, header)


# Against the library


TENSORS = {
    "embed": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "layers.0.w": torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "layers.0.b": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "double": torch.tensor([[1e300]], dtype=torch.float64),
    "ids": torch.tensor([1, 2, 3], dtype=torch.int64),
    "mask": torch.tensor([True, False, True]),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty((0, 4), dtype=torch.float32),
    "é\n\u202e": torch.tensor([7], dtype=torch.uint8),
}
NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.uint8: "U8",
}


def test_a_file_written_by_torch_is_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata={"format": "pt", "by": "them"})
    header = read_header(path)
    assert header.metadata == {"format": "pt", "by": "them"}
    assert {found.name for found in header.entries} == set(TENSORS)
    content = path.read_bytes()
    for found in header.entries:
        tensor = TENSORS[found.name]
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert (found.dtype, found.shape) == (NAMES[tensor.dtype], tuple(tensor.shape))
        assert content[found.begin : found.begin + found.nbytes] == raw


def test_a_file_written_by_numpy_is_read_the_same(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float64).reshape(2, 3),
        "b": np.array([1, -1], dtype=np.int16),
        "c": np.ones((2, 2), dtype=np.float16),
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path)
    content = path.read_bytes()
    found = {found.name: content[found.begin : found.begin + found.nbytes] for found in read_header(path).entries}
    assert found == {name: array.tobytes() for name, array in arrays.items()}


def test_what_ours_writes_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        name: (NAMES[tensor.dtype], tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in TENSORS.items()
        if tensor.numel()
    }
    path = tmp_path / "model.safetensors"
    write_shard(path, tensors, metadata={"format": "pt", "note": "é"})
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in tensors)
    assert_theirs_agrees(path, read_header(path))
    assert read_header(path).data_begin % 8 == 0


@given(
    st.lists(
        st.tuples(st.text(max_size=20), st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
        unique_by=lambda item: item[0],
    ),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
@settings(deadline=None)
def test_a_written_header_reads_back_as_itself_in_every_dtype(
    listed: list[tuple[str, str, list[int]]], metadata: dict[str, str]
) -> None:
    whole = [
        (name, dtype, tuple(shape))
        for name, dtype, shape in listed
        if name != "__metadata__" and np.prod(shape, dtype=int) * BITS[dtype] % 8 == 0
    ]
    raw = encode_header(whole, metadata)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(raw + bytes(sum(bytes_needed(dtype, shape) for _, dtype, shape in whole)))
        header = read_header(path)
        assert_theirs_agrees(path, header)
    assert sorted((found.name, found.dtype, found.shape) for found in header.entries) == sorted(whole)
    assert header.metadata == metadata
    assert header.data_begin == len(raw)


# Malformed files


MALFORMED: dict[str, tuple[str | bytes, bytes]] = {
    "a tensor named twice": (ONE[:-1] + "," + ONE[1:], b"1234"),
    "a metadata key named twice": ('{"__metadata__":{"a":"1","a":"2"}}', b""),
    "metadata twice": ('{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}}', b""),
    "a field named twice": ('{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
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
    "a shape within the shape": (json.dumps({"a": entry(shape=[[1]])}), bytes(4)),
    "null for the shape": (json.dumps({"a": entry(shape=None)}), bytes(4)),
    "a shape that is a number": (json.dumps({"a": entry(shape=1)}), bytes(4)),
    "a product beyond all memory": (json.dumps({"a": entry(shape=[2**40, 2**40])}), bytes(4)),
    "an empty dimension beside an absurd one": (json.dumps({"a": entry(shape=[0, 2**62, 2], offsets=[0, 0])}), b""),
    "a dimension of 2^64-1": ('{"a":{"dtype":"F32","shape":[0,18446744073709551615,2],"data_offsets":[0,0]}}', b""),
    "more dimensions than any array has": (json.dumps({"a": entry(shape=[1] * 65)}), bytes(4)),
    "half a byte": (json.dumps({"a": entry("F4", [1], [0, 1])}), bytes(1)),
    "a number for the dtype": (json.dumps({"a": entry(32)}), bytes(4)),
    "no dtype": ('{"a":{"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "a tensor that is a list": ('{"a":["F32",[1],[0,4]]}', bytes(4)),
    "a tensor that is null": ('{"a":null}', b""),
    "nesting that other readers refuse": (json.dumps({"a": entry(x=[[[]]])}), bytes(4)),
    "nesting as deep as the stack": ("[" * 200_000, b""),
    "a list": ("[]", b""),
    "no header at all": ("", b""),
    "text after the object": (ONE + "x", bytes(4)),
    "padding with NUL": (ONE.encode() + b"\0\0", bytes(4)),
    "a BOM": (b"\xef\xbb\xbf" + ONE.encode(), bytes(4)),
    "bytes that are not UTF-8": (ONE.replace("a", "\xff").encode("latin-1"), bytes(4)),
    "half a surrogate pair for a name": (ONE.replace('"a"', '"\\ud800"'), bytes(4)),
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


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 100_000_001, 65 * 2**20])
def test_a_lie_about_the_headers_length_costs_no_memory(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(600 * 2**20)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(HeaderMalformed, match="claims a header of"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_dtype_that_the_format_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownDtype, match="F128") as refused:
        read_header(written(tmp_path, json.dumps({"a": entry("F128", [1], [0, 16])}), bytes(16)))
    assert refused.value.exit_status == 9
    assert "BF16" in refused.value.hint


def test_more_tensors_than_any_model_has_are_refused(tmp_path: Path) -> None:
    many = ",".join(f'"{n}":0' for n in range(250_001))
    with pytest.raises(HeaderMalformed, match="250,001 tensors"):
        read_header(written(tmp_path, "{" + many + "}"))


def test_a_file_that_is_not_there_is_unreadable_not_malformed(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match="No such file"):
        read_header(tmp_path / "model.safetensors")


def test_what_old_writers_left_in_headers_is_still_read(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, " " + json.dumps({"a": entry(note="x", count=3)}) + "\n\t", b"1234"))
    assert [found.name for found in header.entries] == ["a"]


def test_names_are_opaque_and_never_paths(tmp_path: Path) -> None:
    names = ["", "../../etc/passwd", "a\0b", "\x1b[31m", "\u202e", "n" * 512]
    fields = {name: entry(shape=[0], offsets=[0, 0]) for name in names}
    assert [found.name for found in read_header(written(tmp_path, json.dumps(fields))).entries] == names


# Whatever the bytes are


VALID = encode_header([("a.weight", "F32", (2, 3)), ("b", "BF16", (0, 4)), ("c", "U8", ())], {"format": "pt"}) + bytes(
    25
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete"]),
        st.integers(0, len(VALID) - 1),
        st.integers(0, 255) | st.sampled_from(list(b'0123456789{}[]":,-.eE \\ux')),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    changed = bytearray(content)
    for kind, place, byte in edits:
        place = min(place, len(changed) - 1)
        if kind == "set":
            changed[place] = byte
        elif kind == "insert":
            changed.insert(place, byte)
        elif len(changed) > 1:
            del changed[place]
    return bytes(changed)


@given(EDITS)
@settings(deadline=None, max_examples=400)
def test_a_damaged_file_is_refused_or_is_one_that_the_library_takes_too(edits: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(edited(VALID, edits))
        assert_sound_or_refused(path)


@given(EDITS, st.integers(0, 3))
@settings(deadline=None, max_examples=400)
def test_a_damaged_header_of_the_told_length_is_refused_or_taken_by_both(
    edits: list[tuple[str, int, int]], spare: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = edited(VALID[8:-25], [(kind, place - 8 if place > 8 else 0, byte) for kind, place, byte in edits])
        assert_sound_or_refused(written(Path(folder), text, bytes(25 + spare)))


NUMBERS = st.integers(-1, 9) | st.sampled_from([2**53, 2**63 - 1, True, None, 1.0, "1"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F64", "f32", "X", 5]),
        "shape": st.lists(st.integers(0, 3), max_size=3) | st.lists(NUMBERS, max_size=3) | st.none(),
        "data_offsets": st.lists(st.integers(0, 9), min_size=2, max_size=2) | st.lists(NUMBERS, max_size=3),
    },
    optional={"more": st.none() | st.integers() | st.lists(st.none())},
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), ENTRIES | st.none(), max_size=3), st.data())
@settings(deadline=None, max_examples=300)
def test_any_header_of_the_right_grammar_is_refused_or_taken_by_both(fields: dict[str, Any], data: Any) -> None:
    length = data.draw(st.integers(0, 40))
    with tempfile.TemporaryDirectory() as folder:
        assert_sound_or_refused(written(Path(folder), json.dumps(fields), bytes(length)))


@given(st.permutations(["a", "b", "c", "d"]), st.lists(st.integers(0, 2), min_size=4, max_size=4))
@settings(deadline=None)
def test_the_order_of_names_in_the_header_does_not_matter(order: list[str], sizes: list[int]) -> None:
    fields, offset = {}, 0
    for name, size in zip("abcd", sizes, strict=True):
        fields[name] = entry("U8", [size], [offset, offset + size])
        offset += size
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), json.dumps({name: fields[name] for name in order}), bytes(offset))
        header = read_header(path)
        assert_theirs_agrees(path, header)
    begins = {found.name: found.begin - header.data_begin for found in header.entries}
    assert begins == {name: field["data_offsets"][0] for name, field in fields.items()}


def test_the_library_itself_takes_a_tensor_named_twice_which_is_why_ours_does_not(tmp_path: Path) -> None:
    path = written(tmp_path, *MALFORMED["a tensor named twice"])
    with safe_open(path, "np") as theirs:
        assert list(theirs.keys()) == ["a"]


def test_the_library_refuses_what_the_comparison_relies_on(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError), safe_open(written(tmp_path, *MALFORMED["an overlap"]), "np"):
        pass
