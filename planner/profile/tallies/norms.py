"""The l2 norms of a matrix's rows and columns."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from planner.profile.kernels import summarise_norms
from planner.profile.types import NormSummary

__all__ = ["Norms"]

_EXTREMES = 3


class Norms:
    """Sums of squares by row and by column, in float64. Elements that are not finite count as zero."""

    def __init__(self, rows: int, columns: int) -> None:
        self._rows, self._columns = np.zeros(rows), np.zeros(columns)

    def add(self, rows: NDArray[np.float64], columns: NDArray[np.float64], first_row: int) -> None:
        """Add the sums of a piece whose first element is in the row `first_row`."""
        self._rows[first_row : first_row + len(rows)] += rows
        self._columns += columns

    def merge(self, other: Norms, first_row: int) -> None:
        """Add the norms of a band of rows (an expert of a fused tensor), before it is scaled."""
        self.add(other._rows, other._columns, first_row)

    def scale(self, unit: float) -> None:
        """The elements were multiplied by `unit`, a power of two: take that back."""
        self._rows /= unit
        self._rows /= unit  # one after the other, because the square could leave the range of float64
        self._columns /= unit
        self._columns /= unit

    def bands(self, axis: str, start: int, count: int, width: int) -> tuple[float, ...]:
        """The norms of `count` bands of `width` rows or columns each, from `start` on."""
        sums = self._rows if axis == "rows" else self._columns
        found = sums[start : start + count * width].reshape(count, width).sum(axis=1)
        return tuple(np.sqrt(found).tolist())

    def row_summary(self) -> NormSummary | None:
        """The summary of the rows; None where a norm has left float64."""
        return _summary(self._rows)

    def column_summary(self) -> NormSummary | None:
        """The summary of the columns."""
        return _summary(self._columns)


def _summary(squares: NDArray[np.float64]) -> NormSummary | None:
    norms, out = squares.copy(), np.zeros(4)
    smallest, largest = np.zeros(_EXTREMES, np.int64), np.zeros(_EXTREMES, np.int64)
    summarise_norms(norms, 1.0, out, smallest, largest)
    low, high, mean, std = out.tolist()
    middle = (len(norms) - 1) // 2
    norms.partition(middle)
    if not math.isfinite(high + mean + std):
        return None
    return NormSummary(
        count=len(norms),
        min=low,
        median=float(norms[middle]),
        max=high,
        cv=std / mean if mean else None,
        smallest_at=tuple(smallest[smallest >= 0].tolist()),
        largest_at=tuple(largest[largest >= 0].tolist()),
    )
