"""Project out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np

from planner.operations.base import ANYWHERE, Block, Example, Operation, Place, Values
from planner.operations.directions import Axis, Components, Float64, components, directions_at, known_axis, moved
from planner.operations.numbers import ArrayFile, Number, settled

__all__ = ["ProjectOut"]

_NOTHING_LEFT = 1e-8
"""Part of a squared norm below which what is left of a vector is rounding, which no factor makes a vector again."""


class ProjectOut(Operation):
    """Remove a direction of the residual stream from what a matrix writes to the stream, or from what it reads.

    A writer then no longer moves the stream along the direction; a reader no longer sees it. Several directions are
    removed as the space they span.
    """

    POINTWISE: ClassVar[bool] = False
    OBSERVES: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example(
            {"direction": {"file": "directions.safetensors", "array": "d"}, "strength": 1, "axis": "rows"},
            before=((1, 2), (3, 4)),
            after=((0, 0), (3, 4)),
            arrays={"direction": (2, 0)},
        ),
        Example(
            {"direction": {"file": "directions.safetensors", "array": "d"}, "strength": 0.5, "axis": "columns"},
            before=((1, 2), (3, 4)),
            after=((0.5, 2), (1.5, 4)),
            arrays={"direction": (2, 0)},
        ),
        Example(
            {
                "direction": {"file": "directions.safetensors", "array": "d"},
                "strength": 1,
                "axis": "columns",
                "keep_norm": True,
            },
            before=((3, 4), (5, 0), (0, 0)),
            after=((0, 5), (0, 0), (0, 0)),
            arrays={"direction": (2, 0)},
        ),
    )

    kind: Literal["project_out"] = "project_out"
    """The name of the operation."""
    direction: ArrayFile
    """One direction [n], or several [k, n], of any length; made orthonormal first."""
    strength: Number
    """1 removes the direction whole, 0 leaves it, 2 mirrors it."""
    axis: Axis | None = None
    """Which index of the matrix runs over the residual stream; null: the architecture map says."""
    keep_norm: bool = False
    """Stretch each vector of the matrix that lives in the stream back to the norm it had."""

    @property
    def observes(self) -> bool:
        """Where the rows run over the stream, a column must be seen whole before any of it is changed."""
        return self.axis != "columns"

    def observe(self, blocks: Iterable[Block], place: Place) -> Components | None:
        """Components of the matrix's columns; nothing where a row alone says what becomes of it."""
        if known_axis(self.axis) == "columns":
            return None
        return components(blocks, directions_at("rows", place, "direction"), "rows", place)

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """W - s·DᵀDW where the rows of W run over the stream, W - s·WDᵀD where its columns do; D is [k, n], float64.

        With `keep_norm`, each column in the first case, each row in the second, is then multiplied by the ratio of
        its norm before to its norm after. These are the norms of the vectors of the stream, one for each input of a
        writer, as the released code of Lai's norm-preserving biprojected abliteration keeps them (jim-plus/
        llm-abliteration, which transposes a stored [out, in] first); stretching the rows of a writer instead, as the
        sample in its announcement does, would let some of the direction back in. A vector of which nothing but
        rounding is left is not stretched. NaN and infinities spread over their vector and no further.

        Raises ValueError where the axis is not known or the directions do not fit.
        """
        axis, strength = known_axis(self.axis), settled(self.strength)
        directions = directions_at(axis, place, "direction")
        found = place.observed if axis == "rows" else _of_block(values, directions, place)
        after = moved(values, directions, -strength * found.along, axis, place)
        if self.keep_norm:
            factors = _factors(found, strength)
            with np.errstate(over="ignore", invalid="ignore"):
                after *= factors if axis == "rows" else factors[:, None]
        with np.errstate(over="ignore"):
            return after.astype(values.dtype)


def _of_block(values: Values, directions: Float64, place: Place) -> Components:
    return components([Block(place.first, values)], directions, "columns", place)


def _factors(found: Components, strength: float) -> Float64:
    """Norm before over norm after, for each vector."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # Orthonormal directions: of the square of each component, (1 - s)² is left.
        gone = np.zeros_like(found.squares)
        for along in found.along:
            gone += along * along
        left = found.squares - (2 - strength) * strength * gone
        return np.where(left > _NOTHING_LEFT * found.squares, np.sqrt(found.squares / left), 1.0)
