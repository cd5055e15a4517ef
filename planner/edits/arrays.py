"""Arrays that a plan's operations name: directions, vectors, thin matrices."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.checkpoint.header import shown
from planner.edits.sidecar import Unsound, inside, open_sidecar
from planner.errors import ArrayUnusable
from planner.operations.numbers import ArrayFile
from planner.records import Record

__all__ = ["Provenance", "read_array"]

_LONGEST = 500
_MOST_METADATA = 32


class Provenance(Record):
    """Where an array came from, for the reviewer."""

    file: str
    """The file as the plan names it."""
    array: str
    """Name of the array in the file."""
    digest: str
    """Digest of the file's bytes."""
    dtype: str
    """The dtype it is stored in."""
    shape: tuple[int, ...]
    """Its shape."""
    metadata: dict[str, str]
    """What the file says of itself: at most 32 entries, each cut to 500 characters."""


def read_array(
    file: ArrayFile, folder: Path, *, tensor: str, layer: int | None
) -> tuple[NDArray[np.float64], Provenance]:
    """The array that `file` names for a tensor, for a plan in `folder`: a vector or a matrix, finite, not empty.

    `{tensor}` and `{layer}` in the array's name become the tensor's. A relative path must stay inside the folder.
    Raises `ArrayUnusable`.
    """
    name = file.array.replace("{tensor}", tensor)
    if "{layer}" in name and layer is None:
        raise _unusable(file, f"{shown(file.array)} asks for a layer; {shown(tensor)} is in none", _CHECK)
    name = name.replace("{layer}", str(layer))
    try:
        with open_sidecar(inside(folder, file.file)) as found:
            if file.digest not in (None, found.digest):
                raise _unusable(file, "it is not the file that the plan was made with", _CHANGED)
            if name not in found.entries:
                near = get_close_matches(name, found.entries, n=3, cutoff=0.5) or list(found.entries)[:3]
                listed = ", ".join(map(shown, near)) or "no array"
                raise _unusable(file, f"it has no array {shown(name)}; it has {listed}", _CHECK)
            entry = found.entries[name]
            if len(entry.shape) not in (1, 2) or not all(entry.shape):
                what = f"the array {shown(name)} has the shape {list(entry.shape)[:8]}; a vector or a matrix is needed"
                raise _unusable(file, what, _CHECK)
            values = found.read(name)
            metadata = dict(list(found.metadata.items())[:_MOST_METADATA])
    except Unsound as error:
        raise _unusable(file, str(error), _CHECK) from None
    return values, Provenance(
        file=file.file,
        array=name,
        digest=found.digest,
        dtype=entry.dtype,
        shape=entry.shape,
        metadata={key[:_LONGEST]: value[:_LONGEST] for key, value in metadata.items()},
    )


_CHECK = "check the file, the array's name and the path, which is relative to the plan's folder"
_CHANGED = "use the file with the digest that the plan gives, or review the plan anew with this one"


def _unusable(file: ArrayFile, what: str, hint: str) -> ArrayUnusable:
    return ArrayUnusable(f"{shown(file.file)}: {what}", hint=hint)
