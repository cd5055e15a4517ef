"""An evidence file on disk: the JSON, and the arrays beside it, bound to it by their digest."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from blake3 import blake3
from pydantic import ValidationError

from planner import fsio
from planner.edits.sidecar import Sidecar, Unsound, open_sidecar
from planner.errors import EvidenceUnusable, StorageError, UsageError
from planner.evidence.layout import Layout
from planner.evidence.measured import SETS, Direction, Grouping, Measured, Scores
from planner.evidence.types import EVIDENCE_SCHEMA, ArraysRef, EvidenceFile
from planner.inputs import read_text

__all__ = ["arrays_bytes", "arrays_from", "arrays_path", "load_arrays", "read_evidence", "write_evidence"]


def arrays_path(path: Path) -> Path:
    """Where the arrays of the evidence file `path` lie."""
    return path.with_suffix(".safetensors")


def write_evidence(path: Path, evidence: EvidenceFile, arrays: bytes) -> EvidenceFile:
    """Write the arrays, then the JSON that names their digest; each is replaced whole.

    Where the second cannot be written, the first does not stay. Raises `StorageError`, or `UsageError` where both would
    have the same name.
    """
    beside = arrays_path(path)
    if beside == path:
        raise UsageError(f"{path} is the name of the arrays beside it", hint="let the name end in .json")
    named = ArraysRef(file=beside.name, digest=f"blake3:{blake3(arrays).hexdigest()}")
    evidence = evidence.model_copy(update={"arrays": named})
    try:
        fsio.replace_file(beside, arrays)
        fsio.replace_file(path, evidence.model_dump_json(indent=2).encode() + b"\n")
    except BaseException:
        with suppress(StorageError):
            fsio.remove_file(beside)
        raise
    return evidence


def read_evidence(path: Path) -> EvidenceFile:
    """The evidence in a file, without its arrays. Raises `FileUnreadable` or `EvidenceUnusable`."""
    text = read_text(path)
    try:
        return EvidenceFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        version = re.search(r'"schema":\s*"planner/evidence@(\d+)"', text[:200])
        if version and version.group(1) != EVIDENCE_SCHEMA.rpartition("@")[2]:
            raise EvidenceUnusable(
                f"{path} is of another version, planner/evidence@{version.group(1)}", hint="measure anew: planner probe"
            ) from None
        where = ".".join(map(str, first["loc"])) or "the file"
        raise EvidenceUnusable(
            f"{path} is no evidence file: {where}: {first['msg']}", hint="planner probe writes such files"
        ) from None


def load_arrays(path: Path, evidence: EvidenceFile) -> Measured:
    """The arrays of the evidence that was read from `path`. Raises `EvidenceUnusable` where they are not those."""
    beside = path.parent / evidence.arrays.file
    try:
        with open_sidecar(beside) as found:
            if found.digest != evidence.arrays.digest:
                raise Unsound("it is not the file that the evidence was written with")
            shapes = {t.name: (t.rows, t.columns) for t in evidence.tensors}
            return _measured(found, Layout(shapes))
    except Unsound as error:
        raise EvidenceUnusable(f"{beside}: {error}", hint="keep both files of the evidence together") from None


def _measured(found: Sidecar, layout: Layout) -> Measured:
    measured = arrays_from({name: found.read(name) for name in found.entries}, layout)
    for kind, scores in measured.sets.items():
        grouping = measured.grouping(kind)
        fits = scores.tensors.shape == (len(grouping.weights), 2 * layout.tensors + 1)
        if not (fits and _sound(grouping) and scores.units.shape == (int(grouping.merged.max()) + 1, layout.units)):
            raise Unsound("its arrays do not fit the tensors that the evidence names, or one another")
    for name, direction in measured.directions.items():
        rows, columns = layout.shapes[name]
        rank = direction.strengths.size
        if direction.left.shape != (rows, rank) or direction.right.shape != (rank, columns):
            raise Unsound(f"the directions of {name!r} do not fit it")
    return measured


def _sound(grouping: Grouping) -> bool:
    """Whether every group has a weight, a side and a place, and every place a group."""
    weights, side, merged = grouping.weights, grouping.side, grouping.merged
    return bool(
        weights.ndim == 1
        and weights.shape == side.shape == merged.shape
        and weights.size
        and (weights > 0).all()
        and np.isin(side, (0, 1)).all()
        and (side == 0).any()
        and np.array_equal(np.unique(merged), np.arange(int(merged.max()) + 1))
    )


def arrays_from(arrays: dict[str, np.ndarray], layout: Layout) -> Measured:
    """The arrays by what they are. Raises `Unsound` where one is missing."""
    try:
        groupings = [
            Grouping(
                weights=np.asarray(arrays[f"{text}.weights"], np.float64),
                side=arrays[f"{text}.side"].astype(np.int64),
                merged=arrays[f"{text}.merged"].astype(np.int64),
            )
            for text in ("goal", "drift")
        ]
        sets = {
            name: Scores(
                tensors=np.asarray(arrays[f"{name}.tensors"], np.float64),
                units=arrays[f"{name}.units"].astype(np.float32),
            )
            for name in SETS
        }
        directions = {
            name: Direction(
                left=np.asarray(arrays[f"direction.left.{name}"], np.float64),
                strengths=np.asarray(arrays[f"direction.strengths.{name}"], np.float64),
                right=np.asarray(arrays[f"direction.right.{name}"], np.float64),
            )
            for name in layout.shapes
            if f"direction.left.{name}" in arrays
        }
    except KeyError as error:
        raise Unsound(f"it lacks the array {error.args[0]}") from None
    return Measured(layout, groupings[0], groupings[1], sets, directions)


def arrays_bytes(measured: Measured) -> bytes:
    """The arrays as a safetensors file."""
    from safetensors.numpy import save as safetensors_bytes

    arrays: dict[str, np.ndarray] = {}
    for text, grouping in (("goal", measured.goal), ("drift", measured.drift)):
        arrays[f"{text}.weights"] = grouping.weights
        arrays[f"{text}.side"] = grouping.side.astype(np.float64)
        arrays[f"{text}.merged"] = grouping.merged.astype(np.float64)
    for kind, scores in measured.sets.items():
        arrays[f"{kind}.tensors"] = scores.tensors
        arrays[f"{kind}.units"] = scores.units
    for name, direction in measured.directions.items():
        arrays[f"direction.left.{name}"] = direction.left.astype(np.float32)
        arrays[f"direction.strengths.{name}"] = direction.strengths.astype(np.float32)
        arrays[f"direction.right.{name}"] = direction.right.astype(np.float32)
    return safetensors_bytes({name: np.ascontiguousarray(values) for name, values in arrays.items()})
