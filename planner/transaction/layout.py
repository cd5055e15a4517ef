"""Which tensors lie in a shard, in which order, once some are added: its new header, and the new index."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from planner import fsio
from planner.checkpoint import Checkpoint
from planner.dtypes import bytes_needed
from planner.errors import UsageError
from planner.transaction.edits import Addition

__all__ = ["INDEX", "added_to", "extended_header", "extended_index"]

INDEX = "model.safetensors.index.json"


def added_to(checkpoint: Checkpoint, additions: Sequence[Addition]) -> dict[str, list[Addition]]:
    """The additions by shard, those of the widest elements first: then each is aligned if the first one is.

    Raises `UsageError` for a name that is taken, and for a neighbour that is not there.
    """
    found: dict[str, list[Addition]] = {}
    names = set(checkpoint.tensors)
    for addition in additions:
        if addition.name in names:
            raise UsageError(f"there is a tensor {addition.name!r} already", hint="add it under another name")
        if addition.like not in checkpoint.tensors:
            raise UsageError(f"there is no tensor {addition.like!r} to add one beside", hint="name one that is there")
        names.add(addition.name)
        found.setdefault(checkpoint.tensors[addition.like].shard, []).append(addition)
    for those in found.values():
        those.sort(key=lambda addition: (-bytes_needed(addition.dtype, (8,)), addition.name))
    return found


def extended_header(checkpoint: Checkpoint, shard: str, additions: Sequence[Addition]) -> bytes:
    """Length and header of the shard with `additions` behind its tensors.

    The old entries stay in their order, with their offsets and whatever else a writer left in them.
    """
    fields: dict[str, Any] = json.loads(checkpoint.header_bytes(shard)[8:])  # read strictly when it was opened
    header = checkpoint.header(shard)
    end = sum(entry.nbytes for entry in header.entries)
    for addition in additions:
        begin, end = end, end + bytes_needed(addition.dtype, addition.shape)
        fields[addition.name] = {
            "dtype": addition.dtype,
            "shape": list(addition.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the data begin at a multiple of eight
    return struct.pack("<Q", len(text)) + text


def extended_index(checkpoint: Checkpoint, added: dict[str, list[Addition]]) -> bytes | None:
    """The index with the additions in it; None where the checkpoint has none."""
    path = checkpoint.path / INDEX
    if not path.is_file():
        return None
    with fsio.storage_errors(path):
        index: dict[str, Any] = json.loads(path.read_bytes())  # read strictly when the checkpoint was opened
    for shard, additions in added.items():
        index["weight_map"].update({addition.name: shard for addition in additions})
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += sum(
            bytes_needed(addition.dtype, addition.shape) for additions in added.values() for addition in additions
        )
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"
