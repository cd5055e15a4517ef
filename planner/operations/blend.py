"""Blend."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import Number, settled

__all__ = ["Blend"]


class Blend(Operation):
    """Move a tensor towards the same tensor of another checkpoint: W + weight · (other - W).

    0.5 is the mean of the two; beyond 1 or below 0 goes on past either. Task arithmetic on a fine-tuned model.
    """

    POINTWISE: ClassVar[bool] = False
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example(
            {"checkpoint": "finetuned", "weight": 0.5},
            before=((1, 2), (3, 4)),
            after=((2, 2), (1.5, 4)),
            arrays={"other": ((3, 2), (0, 4))},
        ),
    )

    kind: Literal["blend"] = "blend"
    """The name of the operation."""
    checkpoint: Annotated[str, Field(min_length=1, max_length=1024)]
    """Folder of the other checkpoint, relative to the plan's folder, or its hub id."""
    weight: Number
    """How far to go: 0 changes nothing, 1 takes the other tensor."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w + weight · (o - w) in float64; o itself, to the bit, where the weight is 1.

        Rows of the other tensor come from `place.other`. Raises ValueError where it is not given or its rows have
        another shape.
        """
        if place.other is None:
            raise ValueError("the other checkpoint is not there")
        other = place.other(place.first, len(values))
        if other.shape != values.shape:
            raise ValueError(f"rows of {other.shape[-1]} elements in the other checkpoint, {values.shape[-1]} here")
        weight = settled(self.weight)
        with np.errstate(over="ignore", invalid="ignore"):
            if weight == 1:
                return other.astype(values.dtype)
            wide = values.astype(np.float64)
            return (wide + weight * (other.astype(np.float64) - wide)).astype(values.dtype)
