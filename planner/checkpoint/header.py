"""The header of a safetensors file, read strictly and written canonically.

Format (safetensors README, "Format"): an unsigned little-endian 64-bit length N; N bytes of JSON, beginning with `{`
and padded with spaces; then the data. Each tensor has a dtype, a shape and [begin, end) offsets into the data;
together they cover the data exactly, without hole or overlap. `__metadata__` maps strings to strings.

The official reader takes some files against its own rules (a tensor named twice, for example, where the last one
wins); two readers could then see different weights, so those are refused here. What old writers leave and no reader
understands differently (a field of their own, data that are not aligned) is read, with a warning.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from planner import strict_json
from planner.dtypes import BITS, bytes_needed
from planner.errors import FileUnreadable, HeaderMalformed, PickleOnly, ShardTruncated, UnknownDtype

__all__ = ["FROM_PICKLE", "Entry", "Header", "encode_header", "open_regular", "read_header", "shown"]

FROM_PICKLE = "load it on a machine you can lose, and call save_pretrained(DIR, safe_serialization=True)"
_LARGEST_HEADER = 32 * 2**20
_MOST_TENSORS = 250_000
_LONGEST_NAME = 512
_LONGEST_METADATA = 64 * 2**10
_MOST_ELEMENTS = 2**53
_MOST_DIMENSIONS = 64  # as in numpy and torch
# How often each may stand in a header. A tensor's entry has one, two, four, and four and one more for each dimension
# but one; there is room for as many again, since a name or the metadata may hold them too.
_MARKS = {"{": 2 * _MOST_TENSORS, "[": 3 * _MOST_TENSORS, ":": 5 * _MOST_TENSORS, ",": 9 * _MOST_TENSORS}
_ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c")  # torch.save writes the former, some pickles hide in the latter


@dataclass(frozen=True, slots=True)
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
    warnings: tuple[str, ...] = ()
    """What is odd about the file and does not change what is read: one line of each kind, names escaped."""


def shown(name: str) -> str:
    """A stranger's text for a message: quoted, escaped and cut."""
    return repr(name[:80])


def open_regular(path: Path) -> int:
    """A descriptor to read from. Raises OSError, also where `path` is no regular file: a FIFO would never answer.

    Links are followed: the files of a hub cache are links.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_header(path: Path) -> Header:
    """Read and check the header of `path`.

    Raises `HeaderMalformed`, `ShardTruncated`, `PickleOnly`, `UnknownDtype` or `FileUnreadable`.
    """
    text, data_begin, size = _text(path)
    warnings = _warnings(text, data_begin)
    fields = _fields(path, text)
    del text  # text, fields and entries together would be the header three times
    metadata = _metadata(path, fields.pop("__metadata__", {}))
    if len(fields) > _MOST_TENSORS:
        raise _malformed(path, f"{len(fields):,} tensors; at most {_MOST_TENSORS:,} are read")
    entries = [_entry(path, name, field, data_begin) for name, field in fields.items()]
    odd = [name for name, field in fields.items() if field.more]
    entries.sort(key=_by_place)
    end = data_begin
    unaligned = []
    for entry in entries:
        if entry.begin != end:
            raise _malformed(path, f"a hole or an overlap before the tensor {shown(entry.name)}")
        if entry.nbytes and (entry.begin - data_begin) % max(BITS[entry.dtype] // 8, 1):
            unaligned.append(entry.name)
        end += entry.nbytes
    if size < end:
        raise ShardTruncated(f"{path} has {size:,} bytes; its header says {end:,}", hint=_FETCH_AGAIN)
    if size > end:
        raise ShardTruncated(f"{path} has {size - end:,} bytes after the last tensor", hint=_FETCH_AGAIN)
    warnings += _counted(odd, "has a field", "have fields", "that the format does not know")
    warnings += _counted(unaligned, "is", "are", "not aligned to the size of an element")
    return Header(entries=tuple(entries), metadata=metadata, data_begin=data_begin, warnings=tuple(warnings))


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


def _text(path: Path) -> tuple[str, int, int]:
    """The header's text, where the data begin, and the size of the file. No length is believed before it is checked."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ShardTruncated(f"{path} has {size} bytes; a header alone has more", hint=_FETCH_AGAIN)
            (length,) = struct.unpack("<Q", prefix)
            if length > _LARGEST_HEADER:
                # As a length, the first bytes of a pickle or an archive are larger than any that is read.
                if prefix.startswith(_ARCHIVES) or (prefix[0] == 0x80 and 2 <= prefix[1] <= 5):
                    raise PickleOnly(f"{path} is a pickle or an archive, whatever its name says", hint=FROM_PICKLE)
                raise _malformed(path, f"it claims a header of {length:,} bytes; at most {_LARGEST_HEADER:,} are read")
            if length + 8 > size or len(raw := file.read(length)) < length:
                raise ShardTruncated(
                    f"{path} has {size:,} bytes; its header alone claims {length + 8:,}", hint=_FETCH_AGAIN
                )
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}", hint="check the path and its permissions") from None
    try:
        return raw.decode("utf-8"), 8 + length, size
    except UnicodeDecodeError:
        raise _malformed(path, "its header is not UTF-8") from None


class _Field(NamedTuple):
    """What a tensor's JSON object is reduced to while the rest of the header is still being parsed."""

    dtype: Any
    shape: tuple[Any, ...]
    offsets: tuple[Any, ...]
    more: dict[str, Any] | None
    """Fields that the format does not know."""


def _fields(path: Path, text: str) -> dict[str, Any]:
    objects = 0

    def reduced(found: dict[str, Any]) -> Any:
        nonlocal objects
        objects += 1
        if objects > _MOST_TENSORS + 2:  # the header itself and __metadata__ are objects too
            raise strict_json.JsonRefused(f"more than {_MOST_TENSORS:,} tensors")
        # In __metadata__ and at the top these may be names as well; strings and objects are their values there.
        if not isinstance(found.get("shape"), list) or not isinstance(found.get("data_offsets"), list):
            return found
        dtype, shape, offsets = found.pop("dtype", None), found.pop("shape"), found.pop("data_offsets")
        return _Field(dtype, tuple(shape), tuple(offsets), found or None)

    try:
        fields = strict_json.loads(text, largest=_LARGEST_HEADER, most=_MARKS, reduce=reduced)
    except strict_json.JsonRefused as error:
        raise _malformed(path, f"its header: {error}") from None
    if not isinstance(fields, dict):
        raise _malformed(path, "its header is not a JSON object of tensors")
    return fields


def _metadata(path: Path, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _malformed(path, "__metadata__ must map strings to strings")
    for key, value in found.items():
        if max(len(key.encode()), len(value.encode())) > _LONGEST_METADATA:
            raise _malformed(
                path, f"the key or the value of {shown(key)} in __metadata__ has more than {_LONGEST_METADATA:,} bytes"
            )
    return found


def _by_place(entry: Entry) -> tuple[int, int]:
    return entry.begin, entry.nbytes


def _entry(path: Path, name: str, field: Any, data_begin: int) -> Entry:
    if len(name.encode()) > _LONGEST_NAME:
        raise _malformed(path, f"the tensor name {shown(name)} is longer than {_LONGEST_NAME} bytes")
    if not isinstance(field, _Field) or not isinstance(field.dtype, str):
        raise _malformed(path, f"the tensor {shown(name)} lacks a dtype, shape or data_offsets of the right kind")
    dtype, shape, offsets, more = field
    if more and any(isinstance(value, dict | list | tuple) for value in more.values()):
        # Old writers leave a word or a number here; nesting is read to different depths by different readers.
        raise _malformed(path, f"the tensor {shown(name)} has a nested field that the format does not know")
    if len(shape) > _MOST_DIMENSIONS:
        raise _malformed(path, f"the tensor {shown(name)} has {len(shape):,} dimensions")
    elements = 1
    for dimension in shape:
        if type(dimension) is not int or dimension < 0:  # a bool is an int to isinstance()
            raise _malformed(path, f"the tensor {shown(name)} has a dimension that is no count")
        if dimension:  # an empty dimension makes the product zero, but must not hide an absurd one beside it
            elements *= dimension
        if elements > _MOST_ELEMENTS:
            raise _malformed(path, f"the tensor {shown(name)} claims more than 2^53 elements")
    if len(offsets) != 2 or any(type(offset) is not int or offset < 0 for offset in offsets):
        raise _malformed(path, f"the data_offsets of the tensor {shown(name)} are not two counts")
    try:
        nbytes = bytes_needed(dtype, shape)
    except UnknownDtype as error:
        raise UnknownDtype(f"{path}: the tensor {shown(name)}: {error.message}", hint=error.hint) from None
    except ValueError as error:
        raise _malformed(path, f"the tensor {shown(name)}: {error}") from None
    begin, end = offsets
    if end - begin != nbytes:
        raise _malformed(path, f"the tensor {shown(name)} takes {end - begin:,} bytes; its shape asks for {nbytes:,}")
    return Entry(name, sys.intern(dtype), shape, data_begin + begin, nbytes)


def _warnings(text: str, data_begin: int) -> list[str]:
    found = []
    if not text.startswith("{") or not text.rstrip(" ").endswith("}"):
        found.append("its header stands between white space that the format does not allow")
    if data_begin % 8:
        found.append(f"its data begin at byte {data_begin:,}, which is no multiple of eight")
    return found


def _counted(names: list[str], one: str, many: str, what: str) -> list[str]:
    """The warning about tensors of these names, if there are any."""
    if not names:
        return []
    if len(names) == 1:
        return [f"the tensor {shown(names[0])} {one} {what}"]
    return [f"{len(names):,} tensors, the first {shown(names[0])}, {many} {what}"]
