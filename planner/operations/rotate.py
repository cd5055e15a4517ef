"""Rotate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
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


_PI = Decimal("3.14159265358979323846264338327950288419716939937510")
_DIGITS = Context(prec=50, rounding=ROUND_HALF_EVEN, traps=[])
_TERMS = 40
"""Of the two series together: the next, for half a right angle, is below 1e-51."""


def _turned(degrees: float) -> tuple[float, float]:
    """Cosine and sine, rounded once from more than 45 digits, exact at right angles.

    Those of the C library differ between machines in their last bits, and so would the matrix.
    """
    with localcontext(_DIGITS):
        angle = Decimal(math.fmod(degrees, 360))
        quarter = int((angle / 90).to_integral_value())
        angle = (angle - 90 * quarter) * _PI / 180
        sums, term = [Decimal(0), Decimal(0)], Decimal(1)
        for power in range(_TERMS):
            sums[power % 2] += -term if power % 4 > 1 else term
            term *= angle / (power + 1)
        cosine, sine = sums
        for _ in range(quarter % 4):
            cosine, sine = -sine, cosine
        return float(cosine), float(sine)
