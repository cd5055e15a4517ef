"""Predict one version of a piece of a tensor from the other, with parameters fitted to both.

Most edits that are no table of patterns are nearly affine in each row or each column of the last axis, or add a few
outer products (a projection, a rotation, a low-rank update). What is left after the best of them is the rounding.

The parameters are fitted by least squares in float64, in whatever order is fast, then rounded and stored: how they came
about is of no concern to who reads them. The prediction is: the same frame must give the same bytes on every machine.
So it is computed in float64 by sums, products and quotients alone, in the order of the text, and rounded to nearest
even; a predicted NaN, whose bits are the machine's choice, gives way to the given pattern.

    0  none          the given pattern itself
    1  row scale     a[i]·x             4  column scale     a[j]·x
    2  row divide    x / a[i]           5  column divide    x / a[j]
    3  row affine    a[i]·x + b[i]      6  column affine    a[j]·x + b[j]
    6 + k            x + u1[i]·v1[j] + ... + uk[i]·vk[j]

Division is there because an edit that multiplies by a number with 24 bits is undone by dividing by that same number
exactly, and not by multiplying by any other. Parameters are little-endian float32 (float64 for F64): all of a, then all
of b; or u1 to uk, then v1 to vk. They are of the rows and columns that the piece touches. Values of 16 and 32 bits are
rounded to float32 first, and from there to 16 bits, as the edits round them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.dtypes import FloatDtype
from planner.transaction.undo import predicting_kernels as kernels

__all__ = [
    "AFFINE",
    "COLUMNS",
    "DIVIDE",
    "MOST_PRODUCTS",
    "NONE",
    "PRODUCTS",
    "ROWS",
    "SCALE",
    "Arithmetic",
    "Grid",
    "Prediction",
    "scratch",
]

Patterns = NDArray[np.unsignedinteger[Any]]
Float64 = NDArray[np.float64]

NONE, ROWS, COLUMNS, PRODUCTS = 0, 1, 4, 6
"""The first predictor of each family; for products, the number that the count is added to."""
SCALE, DIVIDE, AFFINE = 0, 1, 2
"""What is added to the first of rows or columns."""
MOST_PRODUCTS = 16


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the elements of a piece lie in the rows of their tensor."""

    column: int
    """Column of the first element."""
    length: int
    """Elements of a row."""
    count: int
    """Elements of the piece."""

    @property
    def rows(self) -> int:
        """How many rows the piece touches, the first and the last perhaps in part."""
        return -(-(self.column + self.count) // self.length)

    @property
    def whole(self) -> tuple[int, int]:
        """First element of the first whole row, and how many whole rows there are."""
        begin = -self.column % self.length
        return begin, max(self.count - begin, 0) // self.length


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predictor with its parameters."""

    predictor: int
    """Its number, see above."""
    parameters: NDArray[np.floating[Any]]
    """1-D, as they are stored."""


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[tuple[str, np.dtype[Any]], NDArray[Any]] = {}


_SCRATCH = _Scratch()


def scratch(use: str, count: int, dtype: Any) -> NDArray[Any]:
    """An array [count] of anything, good until this thread's next call with this use and dtype.

    Fresh memory costs more than what is done with it.
    """
    key = use, np.dtype(dtype)
    found = _SCRATCH.arrays.get(key)
    if found is None or found.size < count:
        found = _SCRATCH.arrays[key] = np.empty(count, dtype)
    return found[:count]


class Arithmetic:
    """Values, predictions and rounding for one dtype."""

    def __init__(self, dtype: FloatDtype) -> None:
        self.dtype = dtype
        self.stored = np.dtype("<f8" if dtype.itemsize == 8 else "<f4")
        """Of the parameters."""
        self.infinity = int(dtype.encode(np.array([np.inf], dtype.working))[0])
        """Its pattern."""
        self._table = dtype.decode(dtype.all_patterns()).astype(np.float32) if dtype.tabulable else None

    def room(self, predictor: int, grid: Grid) -> int:
        """Bytes of a predictor's parameters. Raises ValueError if there is none of that number for such a piece."""
        if not NONE <= predictor <= PRODUCTS + MOST_PRODUCTS:
            raise ValueError(f"there is no predictor {predictor}")
        if predictor > PRODUCTS:
            numbers = (predictor - PRODUCTS) * (grid.rows + grid.length)
        elif predictor == NONE:
            numbers = 0
        else:
            lines = grid.length if predictor >= COLUMNS else grid.rows
            numbers = lines * (2 if (predictor - ROWS) % 3 == AFFINE else 1)
        room = numbers * self.stored.itemsize
        if room > grid.count * self.dtype.itemsize:
            raise ValueError(f"predictor {predictor} has more parameters than there are bytes")
        return room

    def values(self, patterns: Patterns, use: str) -> Float64:
        """Values of the patterns in float64, exactly; good until this thread's next call for that use."""
        values = scratch(use, patterns.size, np.float64)
        if self._table is not None:
            kernels.widen_16(patterns, self._table, values)
            return values
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            values[:] = patterns.view(self.dtype.storage)
        return values

    def predict(self, prediction: Prediction, given: Patterns, grid: Grid) -> Patterns:
        """What the predictor makes of the given patterns; good until this thread's next call. Releases the GIL."""
        if prediction.predictor == NONE:
            return given
        values = self.values(given, "predicted")
        self._apply(prediction, values, grid)
        if self.dtype.itemsize == 8:
            return values.view(self.dtype.pattern)
        singles = scratch("rounded", values.size, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            singles[:] = values
        if self.dtype.itemsize == 4:
            return singles.view(self.dtype.pattern)
        patterns = scratch("rounded", values.size, np.uint16)
        kernels.round_16(singles.view(np.uint32), patterns, self.dtype.name == "F16")
        return patterns

    def _apply(self, prediction: Prediction, values: Float64, grid: Grid) -> None:
        number = prediction.predictor
        with np.errstate(invalid="ignore"):
            parameters = prediction.parameters.astype(np.float64)
        if number > PRODUCTS:
            count = number - PRODUCTS
            left = parameters[: count * grid.rows].reshape(count, grid.rows)
            right = parameters[count * grid.rows :].reshape(count, grid.length)
            kernels.add_products(values, grid.column, grid.length, left, right)
            return
        kind = (number - ROWS) % 3
        first = parameters[: parameters.size // 2] if kind == AFFINE else parameters
        second = parameters[parameters.size // 2 :] if kind == AFFINE else parameters
        apply = kernels.apply_columns if number >= COLUMNS else kernels.apply_rows
        apply(values, grid.column, grid.length, kind, first, second)
