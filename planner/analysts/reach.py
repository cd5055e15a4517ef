"""Which tensors, and which elements of them, a modification is about, before any array it names is read.

Two analysts say the same thing in different words: a role and layers, a pattern, a list of names. What they reach is
what can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from planner.analysts.base import Brief
from planner.dtypes import float_dtype
from planner.edits import Surroundings, Unresolved
from planner.edits.selecting import selection_of
from planner.edits.structured import structured_selections
from planner.operations import (
    EVERYTHING,
    ChannelScale,
    Columns,
    HeadScale,
    NeuronScale,
    Rows,
    Selection,
    ValueRanges,
)
from planner.plan import Modification, TargetUnmatched, resolve

__all__ = ["Reach", "overlap", "reach_of", "reach_signature", "surroundings_in"]

Reach = Mapping[str, Selection]
"""The elements that are meant, by the name of the tensor."""


def surroundings_in(brief: Brief) -> Surroundings:
    """What targets are resolved against, for the checkpoint of the brief; paths in a plan mean nothing here."""
    return Surroundings(brief.checkpoint, brief.model, Path(), brief.profile, brief.histograms)


def reach_of(modification: Modification, around: Surroundings) -> Reach:
    """The tensors that a modification names, in the order of the checkpoint, with the elements meant in each.

    A baked steering vector is counted to the weight that it names. Raises `Unresolved`.
    """
    target, operation = modification.target, modification.operation
    try:
        names = resolve(target, list(around.checkpoint.tensors))
    except TargetUnmatched as error:
        raise Unresolved(str(error), hint=error.hint) from None
    if isinstance(operation, HeadScale | NeuronScale | ChannelScale):
        return structured_selections(operation, names, bool(target.tensors or target.roles), around.model)
    found: dict[str, Selection] = {}
    for name in names:
        tensor = around.checkpoint.tensors[name]
        dtype = float_dtype(tensor.dtype)
        found[name] = selection_of(target.elements, tensor, dtype, around)[0] if dtype else EVERYTHING
    return found


def reach_signature(reach: Reach) -> tuple[tuple[str, str, bytes], ...]:
    """Equal for equal reaches."""
    return tuple((name, *_signature(reach[name])) for name in sorted(reach))


def overlap(one: Reach, other: Reach) -> tuple[str, ...]:
    """The tensors of which both may mean some element, sorted.

    Where one goes by place and the other by value, or one by rows and the other by columns, they may.
    """
    return tuple(name for name in sorted(one.keys() & other.keys()) if _meet(one[name], other[name]))


def _signature(selection: Selection) -> tuple[str, bytes]:
    match selection:
        case Rows():
            return "Rows", selection.indices.astype(np.int64).tobytes()
        case Columns():
            return "Columns", selection.indices.astype(np.int64).tobytes()
        case ValueRanges():
            return "ValueRanges", repr(selection.ranges).encode()
        case _:
            return type(selection).__name__, b""


def _meet(one: Selection, other: Selection) -> bool:
    match one, other:
        case Rows(), Rows():
            return bool(np.intersect1d(one.indices, other.indices).size)
        case Columns(), Columns():
            return bool(np.intersect1d(one.indices, other.indices).size)
        case ValueRanges(), ValueRanges():
            return _ranges_meet(one.ranges, other.ranges)
        case _:
            return True


def _ranges_meet(ones: Iterable[tuple[float, float]], others: Iterable[tuple[float, float]]) -> bool:
    return any(max(a, c) <= min(b, d) for a, b in ones for c, d in others)
