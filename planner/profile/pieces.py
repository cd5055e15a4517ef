"""The JSON of profiles, a tensor at a time: that of a large model would take its memory again in one piece.

Each tensor has a line of its own, so that they can be read back one at a time as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from planner.profile.types import Profile, TensorProfile

__all__ = ["profile_pieces", "read_pieces", "tensor_pieces"]

_TENSORS = '"tensors":['


def tensor_pieces(tensors: Sequence[TensorProfile]) -> Iterator[bytes]:
    """A JSON list of tensors, a line each."""
    yield b"["
    for place, tensor in enumerate(tensors):
        yield (b",\n" if place else b"\n") + tensor.model_dump_json().encode()
    yield b"\n]"


def profile_pieces(profile: Profile) -> Iterator[bytes]:
    """The document that `profile.model_dump_json()` gives, with line feeds around every tensor and at the end."""
    without = profile.model_copy(update={"tensors": ()}).model_dump_json()
    head, _, tail = without.partition(_TENSORS + "]")  # inside a string, the quotes would be escaped
    yield f"{head}{_TENSORS[:-1]}".encode()
    yield from tensor_pieces(profile.tensors)
    yield f"{tail}\n".encode()


def read_pieces(lines: Iterable[str]) -> tuple[dict[str, Any], Iterator[TensorProfile]]:
    """From the lines of such a document: the fields before the tensors, and the tensors, which are read as one goes.

    Both raise `ValueError` for anything else; what comes after the tensors is not looked at.
    """
    rest = iter(lines)
    head, found, nothing = next(rest, "").partition(_TENSORS)
    if not found or nothing.strip():
        raise ValueError("the first line is not that of a profile")
    fields = json.loads(head.rstrip().removesuffix(",") + "}")
    if not isinstance(fields, dict):
        raise ValueError("the first line is not that of a profile")
    return fields, _tensors(rest)


def _tensors(lines: Iterator[str]) -> Iterator[TensorProfile]:
    for line in lines:
        if line.startswith("]"):
            return
        yield TensorProfile.model_validate_json(line.rstrip().removesuffix(","))
    raise ValueError("the list of tensors has no end")
