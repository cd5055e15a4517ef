"""The header of a safetensors file, read strictly and written canonically.

Format (safetensors README, "Format"): an unsigned little-endian 64-bit length N; N bytes of JSON, beginning with `{`
and padded with spaces; then the data. Each tensor has a dtype, a shape and [begin, end) offsets into the data;
together they cover the data exactly, without hole or overlap. `__metadata__` maps strings to strings.

The official reader takes some files against its own rules (a tensor named twice, for example, where the last one
wins); two readers could then see different weights, so those are refused here.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner import strict_json
from planner.dtypes import bytes_needed
from planner.errors import FileUnreadable, HeaderMalformed, ShardTruncated, UnknownDtype

__all__ = ["Entry", "Header", "encode_header", "read_header"]

_LARGEST_HEADER = 64 * 2**20
_MOST_TENSORS = 250_000
_LONGEST_NAME = 512
_MOST_ELEMENTS = 2**53
_MOST_DIMENSIONS = 64  # as in numpy and torch
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Entry:
    """One tensor of one file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte from the beginning of the file."""
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The tensors of one file, in the order of their data."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    data_begin: int
    """Offset of the first byte of data from the beginning of the file."""


def read_header(path: Path) -> Header:
    """Read and check the header of `path`.

    Raises `HeaderMalformed`, `ShardTruncated`, `UnknownDtype` or `FileUnreadable`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ShardTruncated(f"{path} has {size} bytes; a header alone has more", hint=_FETCH_AGAIN)
            (length,) = struct.unpack("<Q", prefix)
            if length > _LARGEST_HEADER:
                raise _malformed(path, f"it claims a header of {length:,} bytes; at most {_LARGEST_HEADER:,} are read")
            if length + 8 > size:
                raise ShardTruncated(
                    f"{path} has {size:,} bytes; its header alone claims {length + 8:,}", hint=_FETCH_AGAIN
                )
            raw = file.read(length)
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}", hint="check the path and its permissions") from None
    entries, metadata = _parsed(path, raw, data_begin=8 + length)
    end = max((entry.begin + entry.nbytes for entry in entries), default=8 + length)
    if size < end:
        raise ShardTruncated(f"{path} has {size:,} bytes; its header says {end:,}", hint=_FETCH_AGAIN)
    if size > end:
        raise ShardTruncated(f"{path} has {size - end:,} bytes after the last tensor", hint=_FETCH_AGAIN)
    return Header(entries=entries, metadata=metadata, data_begin=8 + length)


def encode_header(tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Length and header of a file that holds `tensors` (name, dtype, shape), their data following in this order."""
    fields: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + bytes_needed(dtype, shape)
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the data begin at a multiple of eight
    return struct.pack("<Q", len(text)) + text


_FETCH_AGAIN = "the download or copy was cut short; fetch the file again"


def _malformed(path: Path, what: str) -> HeaderMalformed:
    return HeaderMalformed(f"{path} is not a sound safetensors file: {what}", hint="fetch or export the file again")


def _parsed(path: Path, raw: bytes, *, data_begin: int) -> tuple[tuple[Entry, ...], dict[str, str]]:
    try:
        fields = strict_json.loads(raw.decode("utf-8"), largest=_LARGEST_HEADER)
    except UnicodeDecodeError:
        raise _malformed(path, "its header is not UTF-8") from None
    except strict_json.JsonRefused as error:
        raise _malformed(path, f"its header: {error}") from None
    if not isinstance(fields, dict):
        raise _malformed(path, "its header is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(path, "__metadata__ must map strings to strings")
    if len(fields) > _MOST_TENSORS:
        raise _malformed(path, f"{len(fields):,} tensors; at most {_MOST_TENSORS:,} are read")
    found = sorted((_entry(path, name, field, data_begin) for name, field in fields.items()), key=_by_place)
    expected = data_begin
    for entry in found:
        if entry.begin != expected:
            raise _malformed(path, f"a hole or an overlap before the tensor {entry.name!r}")
        expected += entry.nbytes
    return tuple(found), metadata


def _by_place(entry: Entry) -> tuple[int, int]:
    return entry.begin, entry.nbytes


def _entry(path: Path, name: str, field: Any, data_begin: int) -> Entry:
    shown = repr(name[:80])
    if len(name.encode()) > _LONGEST_NAME:
        raise _malformed(path, f"the tensor name {shown} is longer than {_LONGEST_NAME} bytes")
    if not isinstance(field, dict) or not field.keys() >= _FIELDS:
        raise _malformed(path, f"the tensor {shown} lacks dtype, shape or data_offsets")
    if len(field) > 3 and any(isinstance(field[key], dict | list) for key in field.keys() - _FIELDS):
        # Old writers leave a word or a number here; nesting is read to different depths by different readers.
        raise _malformed(path, f"the tensor {shown} has a nested field that the format does not know")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _malformed(path, f"the tensor {shown} has a dtype, shape or data_offsets of the wrong kind")
    if len(shape) > _MOST_DIMENSIONS:
        raise _malformed(path, f"the tensor {shown} has {len(shape):,} dimensions")
    elements = 1
    for dimension in shape:
        # An empty dimension makes the product zero, but must not hide an absurd one beside it.
        elements *= max(dimension, 1)
        if elements > _MOST_ELEMENTS:
            raise _malformed(path, f"the tensor {shown} claims more than 2^53 elements")
    try:
        nbytes = bytes_needed(dtype, tuple(shape))
    except UnknownDtype as error:
        raise UnknownDtype(f"{path}: the tensor {shown}: {error.message}", hint=error.hint) from None
    except ValueError as error:
        raise _malformed(path, f"the tensor {shown}: {error}") from None
    if offsets[1] - offsets[0] != nbytes:
        raise _malformed(
            path, f"the tensor {shown} takes {offsets[1] - offsets[0]:,} bytes; its shape asks for {nbytes:,}"
        )
    return Entry(name=name, dtype=dtype, shape=tuple(shape), begin=data_begin + offsets[0], nbytes=nbytes)


def _counts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(item, int) and item >= 0 for item in value)
        and not any(isinstance(item, bool) for item in value)
    )
