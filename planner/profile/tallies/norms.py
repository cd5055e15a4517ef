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
    """Sums of squares by row and by column, in float64. Elements that are not finite count as zero.

    Squares below float64 are lost: the norm of a row of 2^-300 times the largest element may come out as zero.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._rows, self._columns = np.zeros(rows), np.zeros(columns)
        self._unit = 1.0

    def add(self, rows: NDArray[np.float64], columns: NDArray[np.float64], first_row: int) -> None:
        """Add the sums of a piece whose first element is in the row `first_row`."""
        self._rows[first_row : first_row + len(rows)] += rows
        self._columns += columns

    def merge(self, other: Norms, first_row: int) -> None:
        """Add the norms of a band of rows (an expert of a fused tensor), before it is scaled."""
        self.add(other._rows, other._columns, first_row)

    def scale(self, unit: float) -> None:
        """The elements were multiplied by `unit`, a power of two: norms are divided by it, as their squares may not be.

        The square of a norm can leave float64 where the norm does not.
        """
        self._unit = unit

    def bands(self, axis: str, start: int, count: int, width: int) -> tuple[float, ...]:
        """The norms of `count` bands of `width` rows or columns, from `start` on; () where one has left float64."""
        sums = self._rows if axis == "rows" else self._columns
        with np.errstate(over="ignore"):
            found = sums[start : start + count * width].reshape(count, width).sum(axis=1)
            norms = np.sqrt(found) / self._unit
        return tuple(norms.tolist()) if np.isfinite(norms).all() else ()

    def row_summary(self) -> NormSummary | None:
        """The summary of the rows; None where a norm has left float64."""
        return _summary(self._rows, self._unit)

    def column_summary(self) -> NormSummary | None:
        """The summary of the columns."""
        return _summary(self._columns, self._unit)


def _summary(squares: NDArray[np.float64], unit: float) -> NormSummary | None:
    norms, out = squares.copy(), np.zeros(4)
    smallest, largest = np.zeros(_EXTREMES, np.int64), np.zeros(_EXTREMES, np.int64)
    summarise_norms(norms, out, smallest, largest)
    low, high, mean, std = out.tolist()
    middle = (len(norms) - 1) // 2
    norms.partition(middle)
    if not math.isfinite(high / unit):
        return None
    return NormSummary(
        count=len(norms),
        min=low / unit,
        median=float(norms[middle]) / unit,
        max=high / unit,
        cv=std / mean if mean else None,
        smallest_at=tuple(smallest[smallest >= 0].tolist()),
        largest_at=tuple(largest[largest >= 0].tolist()),
    )
