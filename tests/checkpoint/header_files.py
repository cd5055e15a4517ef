"""Safetensors files with any text for a header, and what the official library sees in them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError, safe_open

from planner.checkpoint.header import Header, read_header
from planner.dtypes import BITS
from planner.errors import CheckpointError, FileUnreadable

__all__ = ["COMPARABLE", "ONE", "assert_sound_or_refused", "assert_theirs_agrees", "entry", "patterned", "written"]

ONE = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'


def written(folder: Path, header: str | bytes, data: bytes = b"") -> Path:
    """A file with this text for a header, its length told truly."""
    text = header if isinstance(header, bytes) else header.encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def patterned(length: int) -> bytes:
    """Bytes that are not the same at two places nearby."""
    return bytes((7 * n + n // 256) % 256 for n in range(length))


def theirs_knows(dtype: str) -> bool:
    text = json.dumps({"a": entry(dtype, [8], [0, BITS[dtype]])}).encode()
    try:
        safetensors.deserialize(struct.pack("<Q", len(text)) + text + bytes(BITS[dtype]))
    except SafetensorError:
        return False
    return True


# Older releases of the library do not know the newest dtypes of the format (F4, F6_*, F8_E8M0, C64). Those it refuses
# by name whatever the header says, so nothing can be compared there. The newest release knows all of ours.
COMPARABLE = sorted(dtype for dtype in BITS if theirs_knows(dtype))


def assert_theirs_agrees(path: Path, header: Header) -> None:
    """The library opens the file and sees the same names, dtypes, shapes and bytes in it."""
    if any(found.dtype not in COMPARABLE for found in header.entries):
        return
    raw = path.read_bytes()
    ours = {f.name: (f.dtype, list(f.shape), raw[f.begin : f.begin + f.nbytes]) for f in header.entries}
    assert len(ours) == len(header.entries)
    theirs = {name: (f["dtype"], f["shape"], bytes(f["data"])) for name, f in safetensors.deserialize(raw)}
    assert theirs == ours
    with safe_open(path, framework="np") as opened:  # reads the header by another way than deserialize()
        views = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it has no other iteration
        seen = {name: (view.get_dtype(), view.get_shape()) for name, view in views.items()}
        assert seen == {name: (dtype, shape) for name, (dtype, shape, _) in ours.items()}
        assert (opened.metadata() or {}) == header.metadata


def assert_sound_or_refused(path: Path) -> None:
    """Ours refuses it with an error of the planner, or both take it and agree."""
    try:
        header = read_header(path)
    except (CheckpointError, FileUnreadable) as error:
        refused = error
    else:
        assert_theirs_agrees(path, header)
        return
    assert refused.exit_status == (2 if isinstance(refused, FileUnreadable) else 9)
    assert refused.message.removeprefix(str(path)).isprintable()
