"""Where the sensitivities of each tensor lie in the flat arrays of an evidence file.

A *unit* is one row or one column of a tensor as a matrix [rows, columns]; leading dimensions count as rows, and a
vector is one row. The units of all tensors stand in one long axis: first a tensor's rows, then its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from planner.edits.selecting import as_matrix

__all__ = ["Layout", "Place"]


@dataclass(frozen=True)
class Place:
    """One tensor's places."""

    number: int
    """Its place among the tensors."""
    shape: tuple[int, int]
    """Rows and columns."""
    rows: slice
    """Its rows among the units."""
    columns: slice
    """Its columns among the units."""


@dataclass(frozen=True)
class Layout:
    """The tensors that were measured, in order, each as a matrix."""

    shapes: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """For tensors of any shapes."""
        return cls({name: as_matrix(shape) for name, shape in shapes.items()})

    @cached_property
    def places(self) -> dict[str, Place]:
        """By the tensor's name."""
        found, begin = {}, 0
        for number, (name, (rows, columns)) in enumerate(self.shapes.items()):
            middle, end = begin + rows, begin + rows + columns
            found[name] = Place(number, (rows, columns), slice(begin, middle), slice(middle, end))
            begin = end
        return found

    @property
    def tensors(self) -> int:
        """How many tensors there are."""
        return len(self.shapes)

    @cached_property
    def units(self) -> int:
        """How many rows and columns there are in all."""
        return sum(rows + columns for rows, columns in self.shapes.values())
