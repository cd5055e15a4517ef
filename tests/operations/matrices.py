"""Whole matrices through operations that see them block by block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from planner.dtypes import FLOATS, FloatDtype
from planner.operations.base import Block, Operation, Place

__all__ = ["apply_whole", "cuts_of", "rounded_to"]

Array = np.ndarray[Any, Any]


def rounded_to(dtype: FloatDtype) -> Any:
    """Values rounded to what can be stored."""
    return lambda values: dtype.decode(dtype.encode(values))


def cuts_of(rows: int, seed: int) -> list[int]:
    """Where to cut, so that blocks of one row, of many, and of none occur."""
    return sorted(np.random.default_rng(seed).integers(0, rows + 1, 4).tolist())


def apply_whole(
    operation: Operation,
    values: Array,
    arrays: dict[str, Any] | None = None,
    *,
    cuts: list[int] | None = None,
    dtype: str | None = None,
    other: Array | None = None,
) -> Array:
    """The new matrix, put together from blocks cut at the rows `cuts`, in `observe` as well as in `apply`."""
    edges = [0, *(cuts or []), len(values)]
    place = Place(
        shape=(len(values), values.shape[1]),
        arrays={name: np.array(array, dtype=np.float64) for name, array in (arrays or {}).items()},
        rounded=rounded_to(FLOATS[dtype]) if dtype else None,
        other=None if other is None else lambda first, count: other[first : first + count],
    )
    pieces = list(pairwise(edges))

    def blocks() -> Iterator[Block]:
        for first, last in pieces:
            yield Block(first, values[first:last])

    if operation.observes:
        place = Place(**{**vars(place), "observed": operation.observe(blocks(), place)})
    before = values.copy()
    found = [operation.apply(values[a:b], Place(**{**vars(place), "first": a})) for a, b in pieces]
    assert np.array_equal(values, before, equal_nan=True)
    assert all(block.dtype == values.dtype for block in found)
    return np.concatenate(found)
