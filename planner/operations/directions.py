"""Directions of the residual stream, and the components of a matrix along them.

One index of a matrix that reads or writes the residual stream runs over the stream: the rows of a torch Linear that
writes ([out, in]), the columns of one that reads, the columns of an embedding [vocabulary, n]; the other way round for
a Conv1D [in, out]. The vectors that live in the stream are then the matrix's columns (axis "rows") or its rows (axis
"columns"). Sums are taken in float64, in an order that depends neither on how the rows are cut into blocks nor on the
machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.operations.base import Block, Place, Values
from planner.operations.limits import array_of
from planner.operations.sums import dot, dots, squares

__all__ = ["Axis", "Components", "Float64", "components", "directions_at", "known_axis", "moved", "orthonormal"]

Axis = Literal["rows", "columns"]
"""Which index of a matrix runs over the residual stream."""

Float64 = NDArray[np.float64]
_DEPENDENT = 1e-6
"""A direction of which less than this part is left beside the others is taken for one of their span."""


@dataclass(frozen=True, eq=False)
class Components:
    """How far the vectors of a matrix that live in the residual stream go along some directions."""

    along: Float64
    """[directions, vectors]."""
    squares: Float64
    """[vectors]: the squared norm of each."""


def known_axis(axis: Axis | None) -> Axis:
    """`axis`. Raises ValueError where it is not known."""
    if axis is None:
        raise ValueError("it is not known whether the rows or the columns run over the residual stream; give the axis")
    return axis


def directions_at(axis: Axis, place: Place, *names: str) -> Float64:
    """The directions [k, n] that the parameters `names` stand for, orthonormal, in that order.

    n is the number of rows or columns, whichever run over the stream. Raises ValueError for an array of another
    length, and what `orthonormal` raises.
    """
    length = place.shape[0 if axis == "rows" else 1]
    return orthonormal(np.concatenate([array_of(place, name, None, length) for name in names]))


def orthonormal(directions: Values) -> Float64:
    """The rows of [k, n], in float64, made orthonormal in their order; the first keeps its direction.

    Gram-Schmidt, each direction cleared of the earlier ones twice: twice is enough for orthogonality to rounding
    (Giraud, Langou, Rozložník and van den Eshof 2005). Raises ValueError for a direction of no length or one that is
    not finite, for one in the span of those before it, and where there is none.
    """
    found = np.zeros(directions.shape, dtype=np.float64)
    if not len(directions):
        raise ValueError("no direction is given")
    for index, given in enumerate(directions.astype(np.float64)):
        largest = float(np.abs(given).max(initial=0))
        if not 0 < largest < np.inf:
            raise ValueError(f"direction {index + 1} has no length, or is not finite")
        direction = given / largest  # so that no square overflows or vanishes
        direction /= np.sqrt(dot(direction, direction))
        for _ in range(2):
            for earlier in found[:index]:
                direction = direction - dot(earlier, direction) * earlier
        left = np.sqrt(dot(direction, direction))
        if left < _DEPENDENT:
            raise ValueError(f"direction {index + 1} lies in the span of those before it")
        found[index] = direction / left
    return found


def components(blocks: Iterable[Block], directions: Float64, axis: Axis, place: Place) -> Components:
    """Components of the whole matrix's columns (axis "rows"), or of the rows in the blocks (axis "columns")."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _of_columns(blocks, directions, place) if axis == "rows" else _of_rows(blocks, directions)


def _of_columns(blocks: Iterable[Block], directions: Float64, place: Place) -> Components:
    along = np.zeros((len(directions), place.shape[1]), dtype=np.float64)
    lengths = np.zeros(place.shape[1], dtype=np.float64)
    for block in blocks:
        for index, row in enumerate(block.values, start=block.first):
            wide = row.astype(np.float64)
            along += directions[:, index, None] * wide
            lengths += wide * wide
    return Components(along, lengths)


def _of_rows(blocks: Iterable[Block], directions: Float64) -> Components:
    along, lengths = [np.empty((0, len(directions)))], [np.empty(0)]
    for block in blocks:
        along.append(dots(block.values, directions))
        lengths.append(squares(block.values))
    return Components(np.concatenate(along).T, np.concatenate(lengths))


def moved(values: Values, directions: Float64, amounts: Float64, axis: Axis, place: Place) -> Float64:
    """[rows, columns], float64: the block, its vectors moved along each direction by [directions, vectors] amounts."""
    moved = values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for direction, amount in zip(directions, amounts, strict=True):
            if axis == "rows":
                moved += direction[place.first : place.first + len(values), None] * amount
            else:
                moved += amount[:, None] * direction
    return moved
