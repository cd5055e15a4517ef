"""Rotate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np

from planner.operations.base import ANYWHERE, Block, Example, Operation, Place, Values
from planner.operations.directions import Axis, Components, components, directions_at, known_axis, moved
from planner.operations.numbers import ArrayFile, Number, settled

__all__ = ["Rotate"]


class Rotate(Operation):
    """Turn what a matrix writes to the residual stream, or reads from it, in the plane of two directions.

    A reader turned by the angle by which the stream is turned answers as before. Every norm stays.
    """

    POINTWISE: ClassVar[bool] = False
    LINEAR: ClassVar[bool] = True
    OBSERVES: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example(
            {
                "first": {"file": "directions.safetensors", "array": "from"},
                "second": {"file": "directions.safetensors", "array": "to"},
                "angle": 90,
                "axis": "columns",
            },
            before=((1, 2, 3), (0, 1, 0)),
            after=((-2, 1, 3), (-1, 0, 0)),
            arrays={"first": (1, 0, 0), "second": (0, 4, 0)},
        ),
        Example(
            {
                "first": {"file": "directions.safetensors", "array": "from"},
                "second": {"file": "directions.safetensors", "array": "to"},
                "angle": 180,
                "axis": "rows",
            },
            before=((1, 2), (3, 4), (5, 6)),
            after=((-1, -2), (3, 4), (-5, -6)),
            arrays={"first": (1, 0, 0), "second": (0, 0, 4)},
        ),
    )

    kind: Literal["rotate"] = "rotate"
    """The name of the operation."""
    first: ArrayFile
    """Direction [n] that is turned towards the second."""
    second: ArrayFile
    """Direction [n]; what of it is at right angles to the first spans the plane. The two must not be parallel."""
    angle: Number
    """By how much to turn, in degrees."""
    axis: Axis | None = None
    """Which index of the matrix runs over the residual stream; null: the architecture map says."""

    @property
    def observes(self) -> bool:
        """Where the rows run over the stream, a column must be seen whole before any of it is changed."""
        return self.axis != "columns"

    def observe(self, blocks: Iterable[Block], place: Place) -> Components | None:
        """Components of the matrix's columns in the plane; nothing where a row alone says what becomes of it."""
        if known_axis(self.axis) == "columns":
            return None
        return components(blocks, directions_at("rows", place, "first", "second"), "rows", place)

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """RW where the rows of W run over the stream, WRᵀ where its columns do, in float64.

        R = I + (cos θ - 1)(ppᵀ + qqᵀ) + sin θ (qpᵀ - pqᵀ), with p along the first direction and q along what of the
        second is orthogonal to it. Raises ValueError where the axis is not known or the directions do not fit.
        """
        axis = known_axis(self.axis)
        plane = directions_at(axis, place, "first", "second")
        if len(plane) != 2:
            raise ValueError(f"{len(plane)} directions span no plane; give two")
        found = place.observed if axis == "rows" else components([Block(place.first, values)], plane, axis, place)
        cosine, sine = _turned(settled(self.angle))
        p, q = found.along
        with np.errstate(over="ignore", invalid="ignore"):
            amounts = np.stack([(cosine - 1) * p - sine * q, (cosine - 1) * q + sine * p])
            return moved(values, plane, amounts, axis, place).astype(values.dtype)


def _turned(degrees: float) -> tuple[float, float]:
    """Cosine and sine, exact at right angles."""
    quarter, rest = divmod(math.fmod(degrees, 360), 90)
    cosine, sine = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(int(quarter) % 4):
        cosine, sine = -sine, cosine
    return cosine, sine
