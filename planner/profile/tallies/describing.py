"""Describing one matrix, from its pieces, in one thread."""

from __future__ import annotations

from collections.abc import Iterator

from planner.dtypes.floats import Patterns
from planner.profile.tallies.base import Described, Matrix, Scratch, SecondLook, Tally
from planner.profile.tallies.narrow import NarrowTally
from planner.profile.tallies.wide import WideTally

__all__ = ["describe", "tally_for"]


def tally_for(matrix: Matrix) -> Tally:
    """An empty tally that suits the matrix's dtype."""
    return NarrowTally(matrix) if matrix.dtype.tabulable else WideTally(matrix)


def describe(pieces: SecondLook, matrix: Matrix) -> Described:
    """Everything about the matrix whose patterns `pieces` gives."""

    def own() -> Iterator[Patterns]:
        for patterns in pieces():
            if len(patterns):
                # The kernels are compiled for memory that may be written to, which `bytes` are not.
                yield patterns if patterns.flags.writeable else patterns.copy()

    tally, scratch, first = tally_for(matrix), Scratch(), 0
    for patterns in own():
        tally.count(scratch, patterns, first)
        tally.merge(scratch, first)
        first += len(patterns)
    return tally.finish(own)
