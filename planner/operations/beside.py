"""What an operation names beside its numbers: files of arrays, adapters, other checkpoints."""

from __future__ import annotations

from pydantic import BaseModel

from planner.operations.numbers import ArrayFile

__all__ = ["named_beside"]

_PATHS = ("lora", "checkpoint")
"""Parameters that are the path of a folder, or a hub id."""


def named_beside(operation: BaseModel) -> tuple[str, ...]:
    """The paths that `operation` holds, in the order of its parameters; none for most operations."""
    found = []
    for name in type(operation).model_fields:
        value = getattr(operation, name)
        if isinstance(value, ArrayFile):
            found.append(value.file)
        elif name in _PATHS and isinstance(value, str):
            found.append(value)
    return tuple(found)
