"""Bake steering."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.directions import Axis
from planner.operations.limits import array_of
from planner.operations.numbers import ArrayFile, Number, settled
from planner.operations.sums import dot

__all__ = ["BakeSteering"]


class BakeSteering(Operation):
    """Add a steering vector to what a linear module puts out, for good, as its bias. The target is its weight.

    A module without a bias gets one where its architecture has a place for it.
    """

    POINTWISE: ClassVar[bool] = False
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example(
            {"vector": {"file": "steering.safetensors", "array": "v"}, "strength": 2},
            before=((1, 0, -1),),
            after=((2, 4, -1),),
            arrays={"vector": (0.5, 2, 0)},
        ),
        Example(
            {
                "vector": {"file": "steering.safetensors", "array": "v"},
                "strength": 2,
                "without_bias": "rank_one",
                "input": {"file": "steering.safetensors", "array": "mean_input"},
                "axis": "rows",
            },
            before=((1, 0), (0, 1), (0, 0)),
            after=((1, 0.5), (0, 3), (0, 0)),
            arrays={"vector": (0.5, 2, 0), "input": (0, 2)},
        ),
    )

    kind: Literal["bake_steering"] = "bake_steering"
    """The name of the operation."""
    vector: ArrayFile
    """Vector of one number for each output of the module."""
    strength: Number
    """What to multiply the vector by."""
    without_bias: Literal["refuse", "rank_one"] = "refuse"
    """Where the architecture has no such bias: refuse, or change the weight, which is exact for one input only."""
    input: ArrayFile | None = None
    """For `rank_one`: the module's mean input, one number for each input; that input gets the vector exactly."""
    axis: Axis | None = None
    """For `rank_one`: which index of the weight runs over the outputs; null: the architecture map says."""

    @model_validator(mode="after")
    def _input_makes_sense(self) -> Self:
        if (self.without_bias == "rank_one") != (self.input is not None):
            raise ValueError("an input goes with without_bias rank_one, and rank_one needs one")
        return self

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """b + s·v for a bias [1, n], in float64; W + s·v·xᵀ/(xᵀx) for a weight, where there is no bias.

        The values are a weight where `place.arrays` holds `input`, else a bias, of zeros where it is made anew.
        A new bias in float32 gives, to the bit, what a forward hook that adds s·v gives, where the matrix product
        adds the bias after its last term: torch 2.13 on x86 does for 2 to 384 inputs, and beyond that for less than
        16 vectors at a time. Elsewhere, and where there was a bias (which meets s·v before it meets the product), the
        two agree up to the rounding of one sum. In 16 bits the new bias itself is rounded once.

        The change of the weight adds s·v·(xᵀy)/(xᵀx) to the output for an input y: s·v for y = x, nothing for an
        input at right angles to x, an approximation for every other.

        Raises ValueError where the arrays do not fit, x has no length, or the axis of a weight is not known.
        """
        strength = settled(self.strength)
        rows, columns = place.shape
        with np.errstate(over="ignore", invalid="ignore"):
            if "input" not in place.arrays:
                if rows != 1:
                    raise ValueError("the values are no bias, and no input is given")
                added = strength * array_of(place, "vector", columns)[None, :]
            else:
                if self.axis is None:
                    raise ValueError("it is not known whether rows or columns are the outputs; give the axis")
                by_rows = self.axis == "rows"
                vector = strength * array_of(place, "vector", rows if by_rows else columns)
                input_ = array_of(place, "input", columns if by_rows else rows)
                square = dot(input_, input_)
                if not 0 < square < np.inf:
                    raise ValueError("the input has no length")
                down, across = (vector, input_ / square) if by_rows else (input_ / square, vector)
                added = down[place.first : place.first + len(values), None] * across
            return (values.astype(np.float64) + added).astype(values.dtype)
