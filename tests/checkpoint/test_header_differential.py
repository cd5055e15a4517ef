"""Against the official library: what ours writes theirs reads, and what ours accepts theirs accepts and sees alike."""

from __future__ import annotations

import json
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from builders import write_shard
from header_files import COMPARABLE, ONE, assert_theirs_agrees, entry, patterned, written
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from planner.checkpoint import open_checkpoint
from planner.checkpoint.header import encode_header, read_header
from planner.dtypes import BITS, bytes_needed
from planner.errors import HeaderMalformed

# Sound files


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


@pytest.mark.parametrize("dtype", [d for d in dir(torch) if d.startswith("float8_")] + ["bfloat16", "complex64"])
def test_what_the_library_cannot_give_to_numpy_is_read_as_bytes(dtype: str, tmp_path: Path) -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).to(getattr(torch, dtype))
    try:
        safetensors.torch.save_file({"a": tensor}, tmp_path / "model.safetensors")
    except (KeyError, SafetensorError):
        pytest.skip(f"the library does not write {dtype}")
    checkpoint = open_checkpoint(tmp_path)
    assert b"".join(checkpoint.chunks(checkpoint.tensors["a"])) == tensor.view(torch.uint8).numpy().tobytes()
    assert_theirs_agrees(tmp_path / "model.safetensors", checkpoint.header("model.safetensors"))


def test_theirs_and_ours_know_the_same_dtypes(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError) as refused, safe_open(written(tmp_path, ONE.replace("F32", "Q1")), "np"):
        pass
    known = set(re.findall(r"`(\w+)`", str(refused.value))) - {"Q1"}
    assert known == set(COMPARABLE)
    if tuple(map(int, version("safetensors").split(".")[:2])) >= (0, 8):
        assert known == set(BITS)


LISTED = st.lists(
    st.tuples(st.text(max_size=20), st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 3), max_size=3)),
    max_size=6,
    unique_by=lambda item: item[0],
).map(
    lambda listed: [
        (name, dtype, tuple(shape))
        for name, dtype, shape in listed
        if name != "__metadata__" and np.prod(shape, dtype=int) * BITS[dtype] % 8 == 0
    ]
)
METADATA = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)


@given(LISTED, METADATA)
@settings(deadline=None)
def test_a_written_header_reads_back_as_itself_in_every_dtype(
    whole: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    raw = encode_header(whole, metadata)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(raw + patterned(sum(bytes_needed(dtype, shape) for _, dtype, shape in whole)))
        header = read_header(path)
        assert_theirs_agrees(path, header)
    assert sorted((found.name, found.dtype, found.shape) for found in header.entries) == sorted(whole)
    assert header.metadata == metadata
    assert header.data_begin == len(raw)


SPACE = st.text(" \t\r\n", max_size=3)


@given(LISTED, METADATA, SPACE, st.booleans(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=200)
def test_the_same_header_in_any_other_dress_is_read_by_both(
    whole: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str], space: str, ascii_only: bool, random: Any
) -> None:
    fields: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, dtype, shape in whole:
        end = offset + bytes_needed(dtype, shape)
        field = entry(dtype, shape, [offset, end], note=random.choice([None, True, "{[,:", -0.0, 1e300, -5]))
        fields[name] = dict(random.sample(list(field.items()), random.randint(3, 4)))
        fields[name] |= entry(dtype, shape, [offset, end])
        offset = end
    fields = dict(random.sample(list(fields.items()), len(fields)))
    text = json.dumps(fields, ensure_ascii=ascii_only, separators=("," + space, space + ":"))
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), space + text + space, patterned(offset))
        header = read_header(path)
        assert_theirs_agrees(path, header)
    assert sorted((found.name, found.dtype, found.shape) for found in header.entries) == sorted(whole)


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


# What the library takes and ours refuses, and why

STRICTER: dict[str, tuple[str, bytes]] = {
    # The library keeps the last of two; another reader keeps the first.
    "a tensor named twice": (ONE[:-1] + "," + ONE[1:], b"1234"),
    "a tensor named twice, F32 then I32": (ONE[:-1] + "," + ONE[1:].replace("F32", "I32"), b"1234"),
    "a metadata key named twice": ('{"__metadata__":{"a":"1","a":"2"}}', b""),
    "a field of their own named twice": (ONE.replace("}}", ',"x":1,"x":2}}'), b"1234"),
    # Accidents of how its structures are derived, in no description of the format.
    "metadata that is null": ('{"__metadata__":null}', b""),
    "a tensor that is a list": ('{"a":["F32",[1],[0,4]]}', b"1234"),
    "a dtype that is an object": (ONE.replace('"F32"', '{"F32":null}'), b"1234"),
    "a nested field of their own": (ONE.replace("}}", ',"x":[[[]]]}}'), b"1234"),
    "an integer beyond 64 bits in a field of their own": (ONE.replace("}}", ',"x":99999999999999999999}}'), b"1234"),
    # It opens them, and fails or overflows where the tensor is used.
    "an empty dimension beside 2^64-1": (json.dumps({"a": entry(shape=[0, 2**64 - 1, 2], offsets=[0, 0])}), b""),
    "an empty dimension beside 2^62": (json.dumps({"a": entry(shape=[0, 2**62, 2], offsets=[0, 0])}), b""),
    "more dimensions than any array has": (json.dumps({"a": entry(shape=[1] * 65)}), b"1234"),
    # Caps: none of them is near anything that a model needs.
    "a name longer than 512 bytes": (json.dumps({"n" * 513: entry()}), b"1234"),
    "a metadata value of more than 64 KiB": (json.dumps({"__metadata__": {"a": "x" * (2**16 + 1)}}), b""),
    "a header of more than 32 MiB": (ONE + " " * (32 * 2**20), b"1234"),
    "more than 250,000 tensors": (
        "{" + ",".join(f'"{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(250_001)) + "}",
        b"",
    ),
}


@pytest.mark.parametrize("what", STRICTER)
def test_what_the_library_takes_and_ours_refuses_on_purpose(what: str, tmp_path: Path) -> None:
    path = written(tmp_path, *STRICTER[what])
    with safe_open(path, framework="np") as theirs:
        assert theirs is not None
    with pytest.raises(HeaderMalformed):
        read_header(path)


def test_the_library_refuses_what_the_comparison_relies_on(tmp_path: Path) -> None:
    overlap = json.dumps({"a": entry(), "b": entry(offsets=[0, 4])})
    with pytest.raises(SafetensorError), safe_open(written(tmp_path, overlap, bytes(8)), "np"):
        pass
