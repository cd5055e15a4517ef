"""What every tally has in common.

A matrix is given piece by piece. Any number of threads may `count` pieces at once, each into a `Scratch` of its own;
the scratches are then merged in the order of the pieces, so that the result does not depend on who counted what.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.dtypes import NumberDtype
from planner.dtypes.floats import Patterns
from planner.profile.kernels import BLOCK, MOMENTS, TALLIES, fold_counts
from planner.profile.tallies.norms import Norms
from planner.profile.types import Statistics

__all__ = ["Described", "Matrix", "Scratch", "SecondLook", "Tally"]

SecondLook = Callable[[], Iterable[Patterns]]
"""Gives the matrix's patterns again, piece by piece from the beginning, each time it is called."""

LARGEST = 8
_MOST_NORMS = 2**20


@dataclass(frozen=True)
class Matrix:
    """What is described as one: a tensor, all dimensions but the last taken as rows, or one expert of a fused one."""

    dtype: NumberDtype
    elements: int
    columns: int
    """Elements a row; 0 where rows and columns are not told apart: below two dimensions, or too many to keep."""

    @classmethod
    def of(cls, dtype: NumberDtype, shape: tuple[int, ...]) -> Matrix:
        """The matrix of a tensor of this shape."""
        elements = int(np.prod(shape, dtype=object))
        columns = shape[-1] if len(shape) > 1 and elements else 0
        if columns and max(columns, elements // columns) > _MOST_NORMS:
            columns = 0
        return cls(dtype, elements, columns)

    @property
    def rows(self) -> int:
        """How many rows there are; 0 where there are none to tell apart."""
        return self.elements // self.columns if self.columns else 0


@dataclass
class Scratch:
    """What one thread counts one piece into. Reused from piece to piece, because its pages are then in the caches."""

    counts: NDArray[np.uint32] = field(default_factory=lambda: np.zeros((2, 2**16), np.uint32))
    rows: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    columns: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    keys: NDArray[Any] = field(default_factory=lambda: np.zeros(LARGEST, np.int64))
    patterns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LARGEST, np.int64))
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LARGEST, np.int64))
    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros(MOMENTS))
    extremes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    tallies: NDArray[np.int64] = field(default_factory=lambda: np.zeros(TALLIES, np.int64))
    spare: dict[str, NDArray[Any]] = field(
        default_factory=lambda: {"f4": np.zeros(BLOCK, np.float32), "f8": np.zeros(BLOCK)}
    )

    def clear(self, matrix: Matrix, first: int, count: int, keys: type[np.generic]) -> None:
        """Make it ready for `count` elements from the place `first` on; `counts` are empty already."""
        rows = (first + count - 1) // matrix.columns - first // matrix.columns + 1 if matrix.columns else 0
        self.rows = _zeros(self.rows, rows)
        self.columns = _zeros(self.columns, matrix.columns)
        self.keys = np.zeros(LARGEST, keys)
        self.places[:] = np.iinfo(np.int64).max
        self.moments[:] = 0
        self.extremes[:] = np.inf, -np.inf
        self.tallies[:] = 0


def _zeros(array: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """So many zeros, in the memory of `array` where that is large enough."""
    whole = array if array.base is None else array.base
    if len(whole) < size:
        return np.zeros(size)
    part: NDArray[np.float64] = whole[:size]
    part[:] = 0
    return part


@dataclass(frozen=True)
class Described:
    """Everything found out about one matrix."""

    statistics: Statistics
    norms: Norms | None
    largest: list[tuple[int, float]]
    """Place and value of the largest elements, the largest first."""
    counts: NDArray[np.int64]
    """How often each pattern occurs; of a wide dtype, each value of its upper 16 bits. Index = pattern."""


class Tally(ABC):
    """Accumulates one matrix."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self._norms = Norms(matrix.rows, matrix.columns) if matrix.columns else None
        self._largest: list[tuple[Any, int, int]] = []  # magnitude, place, pattern

    @abstractmethod
    def count(self, scratch: Scratch, patterns: Patterns, first: int) -> None:
        """Count a piece that begins at the place `first` into an empty `scratch`. Releases the GIL."""

    @abstractmethod
    def _merge(self, scratch: Scratch) -> None: ...

    @abstractmethod
    def finish(self, again: SecondLook) -> Described:
        """The result, once all pieces are merged. May ask for a second look at the elements."""

    def merge(self, scratch: Scratch, first: int) -> None:
        """Take over what was counted, in the order of the pieces; leaves the scratch empty."""
        self._merge(scratch)
        if self._norms:
            self._norms.add(scratch.rows, scratch.columns, first // self.matrix.columns)
        found = zip(scratch.keys.tolist(), scratch.places.tolist(), scratch.patterns.tolist(), strict=True)
        self._keep_largest(element for element in found if element[0] > 0)

    def absorb(self, part: Tally, first: int) -> None:
        """Take over a finished count of the elements from the place `first` on: one expert of a fused tensor."""
        self._absorb(part)
        if self._norms and part._norms:
            self._norms.merge(part._norms, first // self.matrix.columns)
        self._keep_largest((key, first + place, pattern) for key, place, pattern in part._largest)

    @abstractmethod
    def _absorb(self, part: Any) -> None: ...

    def _keep_largest(self, found: Iterable[tuple[Any, int, int]]) -> None:
        self._largest = sorted([*self._largest, *found], key=lambda element: (-element[0], element[1]))[:LARGEST]

    def _fold(self, scratch: Scratch, into: NDArray[np.int64]) -> None:
        fold_counts(scratch.counts, into)

    def _largest_elements(self) -> list[tuple[int, float]]:
        values = self._values(np.array([pattern for _, _, pattern in self._largest], dtype=np.int64)).tolist()
        return [(place, value) for (_, place, _), value in zip(self._largest, values, strict=True)]

    @abstractmethod
    def _values(self, patterns: NDArray[np.int64]) -> NDArray[np.float64]: ...
