"""What modifications are resolved against: the checkpoint, its map, its distribution, the folder of the plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from planner.architecture import ModelMap, map_of
from planner.checkpoint import Checkpoint, Tensor, locate, open_checkpoint
from planner.checkpoint.header import shown
from planner.checkpoint.reading import TensorReader
from planner.dtypes import FloatDtype, float_dtype
from planner.edits.sidecar import Unsound, inside
from planner.edits.types import Unresolved
from planner.errors import CheckpointError, FileUnreadable
from planner.operations import Beyond, beyond_quantile_of_counts, beyond_quantile_of_values
from planner.operations.base import Values
from planner.operations.quantiles import Of, Side
from planner.profile import Histogram, Histograms, Profiled

__all__ = ["Surroundings", "surroundings_of"]


@dataclass
class Surroundings:
    """One checkpoint and what is known of it."""

    checkpoint: Checkpoint
    model: ModelMap
    folder: Path
    """Where relative paths in the plan begin."""
    profile: Profiled | None = None
    histograms: Histograms | None = None
    _quantiles: dict[tuple[str, float, Of, Side], Beyond] = field(default_factory=dict)
    _others: dict[str, Checkpoint] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By the name of the tensor."""
        return {name: tensor.shape for name, tensor in self.checkpoint.tensors.items()}

    def histogram(self, name: str) -> Histogram | None:
        """How often each pattern occurs in a tensor, where that is kept."""
        known = self.profile.by_name.get(name) if self.profile else None
        return self.histograms.of(known) if self.histograms and known else None

    def beyond_quantile(self, tensor: Tensor, dtype: FloatDtype, quantile: float, of: Of, side: Side) -> Beyond:
        """The elements of a tensor on one side of a quantile: from the kept histogram, else from its bytes."""
        key = (tensor.name, quantile, of, side)
        if key not in self._quantiles:
            histogram = self.histogram(tensor.name) if dtype.tabulable else None
            if histogram and histogram.exact:
                found = beyond_quantile_of_counts(histogram.table, dtype, quantile, of=of, side=side)
            elif dtype.tabulable:
                counts = np.zeros(len(dtype.all_patterns()), dtype=np.int64)
                for chunk in self.checkpoint.chunks(tensor):
                    counts += np.bincount(dtype.patterns(chunk), minlength=counts.size)
                found = beyond_quantile_of_counts(counts, dtype, quantile, of=of, side=side)
            else:
                chunks = [dtype.decode(dtype.patterns(chunk)) for chunk in self.checkpoint.chunks(tensor)]
                found = beyond_quantile_of_values(np.concatenate(chunks), quantile, of=of, side=side)
            self._quantiles[key] = found
        return self._quantiles[key]

    def other_rows(self, where: str, tensor: Tensor) -> Callable[[int, int], Values]:
        """Rows [first, first + count) of the tensor of that name in the checkpoint called `where`.

        Raises `Unresolved` where it is not there, or not of the same shape.
        """
        other = self._other(where)
        found = other.tensors.get(tensor.name)
        dtype = float_dtype(found.dtype) if found else None
        if found is None or found.shape != tensor.shape or dtype is None:
            what = "is not there" if found is None else f"is {found.dtype} {list(found.shape)}"
            raise Unresolved(
                f"{tensor.name} {what} in {where}",
                hint="blend with a checkpoint of the same shapes",
                code="other-unusable",
            )
        columns = tensor.shape[-1] if tensor.shape else 1
        decoding, stored = dtype, found

        def rows(first: int, count: int) -> Values:
            size = stored.nbytes // max(stored.elements, 1)
            buffer = bytearray(count * columns * size)
            with TensorReader(other) as reader:
                reader.read_into(memoryview(buffer), stored, first * columns * size)
            return decoding.decode(decoding.patterns(bytes(buffer))).reshape(count, columns)

        return rows

    def _other(self, where: str) -> Checkpoint:
        if where not in self._others:
            try:
                near = inside(self.folder, where)
                # A plan is not trusted to make anybody fetch something: another checkpoint has to be there already.
                here = os.environ | {"PLANNER_OFFLINE": "1"}
                if not near.is_dir() and Path(where).exists():  # the current folder is not what the plan speaks of
                    raise Unsound("the plan's folder holds no such checkpoint")
                self._others[where] = open_checkpoint(near if near.is_dir() else locate(where, environment=here))
            except Unsound as error:
                raise Unresolved(
                    f"{shown(where)}: {error}", hint="name a folder beside the plan", code="other-unusable"
                ) from None
            except (CheckpointError, FileUnreadable) as error:
                raise Unresolved(error.message, hint=error.hint, code="other-unusable") from None
        return self._others[where]


def surroundings_of(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    profile: Profiled | None = None,
    histograms: Histograms | None = None,
    model: ModelMap | None = None,
) -> Surroundings:
    """The surroundings of a plan in `folder` for this checkpoint; `model` is its map, where that is known already."""
    if model is None:
        model = map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    return Surroundings(checkpoint, model, folder, profile, histograms)
