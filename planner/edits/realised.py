"""The values a plan would store, in memory: for scoring it on a loaded model without writing a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.checkpoint import Checkpoint, Tensor
from planner.dtypes import float_dtype
from planner.dtypes.floats import Patterns
from planner.edits.surroundings import Surroundings
from planner.edits.types import PlanEdits, TensorEdit

__all__ = ["new_values", "stored_values"]


def new_values(edits: PlanEdits, around: Surroundings) -> dict[str, NDArray[np.float32]]:
    """Every tensor that the edits change or add, as `apply` would store it: folded, rounded once to the tensor's dtype.

    Float32 arrays of the tensors' shapes, by name; values of F64 tensors are rounded to float32, as a loader would.
    Memory: all changed tensors in float32. Raises ValueError where an operation does not fit its tensor, which `check`
    finds first.
    """
    return {name: _new(edit, around.checkpoint) for name, edit in edits.tensors.items()}


def stored_values(checkpoint: Checkpoint, name: str) -> NDArray[np.floating]:
    """A stored tensor in the precision in which its dtype is computed with (float32; float64 for F64), of its shape.

    Raises KeyError for a name that is not there, and ValueError for a dtype whose values are not understood.
    """
    tensor = checkpoint.tensors[name]
    dtype = float_dtype(tensor.dtype)
    if dtype is None:
        raise ValueError(f"the values of {tensor.dtype} are not understood")
    values = np.empty(tensor.elements, dtype.working)
    done = 0
    for patterns in _patterns(checkpoint, tensor):
        values[done : done + patterns.size] = dtype.decode(patterns)
        done += patterns.size
    return values.reshape(tensor.shape)


def _new(edit: TensorEdit, checkpoint: Checkpoint) -> NDArray[np.float32]:
    values = np.empty(edit.tensor.elements, np.float32)
    done = 0
    blocks = edit.zeros if edit.added is not None else lambda: _patterns(checkpoint, edit.tensor)
    for patterns in edit.rewrite(blocks):
        with np.errstate(over="ignore"):
            values[done : done + patterns.size] = edit.dtype.decode(patterns)
        done += patterns.size
    return values.reshape(edit.tensor.shape)


def _patterns(checkpoint: Checkpoint, tensor: Tensor) -> Iterator[Patterns]:
    dtype = float_dtype(tensor.dtype)
    assert dtype is not None, "an edit has a dtype that is understood"
    return map(dtype.patterns, checkpoint.chunks(tensor))
