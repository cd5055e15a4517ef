"""Running operations on stored bits, as the tests of this folder do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from planner.dtypes import FLOATS, FloatDtype
from planner.operations import AnyOperation, Example, Operation, Step, fold

Array = np.ndarray[Any, Any]
ANY: TypeAdapter[Operation] = TypeAdapter(AnyOperation)


def read(kind: str, **parameters: Any) -> Operation:
    """An operation from its parameters, as a plan gives them."""
    return ANY.validate_python({"kind": kind, **parameters})


def rewritten(
    steps: Sequence[Step], dtype: FloatDtype, patterns: Array, *, cuts: Sequence[int] = (), tensor: str = ""
) -> Array:
    """The new patterns, where the old ones come in pieces that begin at `cuts`."""

    def blocks() -> Iterator[Array]:
        yield from np.split(patterns.reshape(-1), sorted(cuts))

    pieces = list(fold(steps, dtype, patterns.shape, tensor=tensor).rewrite(blocks))
    return np.concatenate([*pieces, np.empty(0, dtype.pattern)]).reshape(patterns.shape)


def step_of(operation: Operation, example: Example) -> Step:
    """The operation with what stands in for its files."""
    arrays = {name: np.array(array, dtype=np.float64) for name, array in example.arrays.items()}
    other = arrays.pop("other", None)
    rows = None if other is None else lambda first, count: other[first : first + count]
    return Step(operation.at_depth(0), arrays=arrays, other=rows)


def computed(operation: Operation, example: Example, values: Array, *, dtype: str = "F64") -> Array:
    """The operation on values, through the stored bits of `dtype` and back."""
    stored = FLOATS[dtype].encode(np.asarray(values, dtype=FLOATS[dtype].working))
    return FLOATS[dtype].decode(rewritten([step_of(operation, example)], FLOATS[dtype], stored))
