"""Rank one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.limits import array_of
from planner.operations.low_rank import Rounding, added, low_rank_delta
from planner.operations.numbers import ArrayFile, Number, settled

__all__ = ["RankOne"]


class RankOne(Operation):
    """Add the outer product of two vectors, W + strength · u vᵀ: what the tensor answers to v moves along u."""

    POINTWISE: ClassVar[bool] = False
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example(
            {
                "u": {"file": "edit.safetensors", "array": "u"},
                "v": {"file": "edit.safetensors", "array": "v"},
                "strength": 0.5,
            },
            before=((1, 0, 0), (0, 1, 0)),
            after=((2, 0, 4), (0, 1, 0)),
            arrays={"u": (2, 0), "v": (1, 0, 4)},
        ),
    )

    kind: Literal["rank_one"] = "rank_one"
    """The name of the operation."""
    u: ArrayFile | None = None
    """Vector of one number a row."""
    v: ArrayFile | None = None
    """Vector of one number a column."""
    lora: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Folder of a PEFT LoRA adapter of rank one, relative to the plan's folder; instead of u and v."""
    strength: Number = 1.0
    """What to multiply the outer product by."""
    rounding: Rounding = "once"
    """Whether the sum alone is rounded to the stored dtype (`once`) or the product before it too (`delta_first`)."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.u is None) != (self.v is None) or (self.lora is None) == (self.u is None):
            raise ValueError("rank_one needs either lora, or both u and v")
        return self

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """W + strength · u vᵀ, computed as `low_rank_add` does with u and v for its matrices of rank one.

        `place.arrays` holds u [rows] and v [columns], and, for an adapter, scaling []. Raises ValueError where u or v
        has another length than the tensor's.
        """
        rows, columns = place.shape
        u, v = array_of(place, "u", rows), array_of(place, "v", columns)
        scaling = float(array_of(place, "scaling")) if "scaling" in place.arrays else 1.0
        mine = u[place.first : place.first + len(values), None]
        delta = low_rank_delta(mine, v[None, :], scaling * settled(self.strength), values.dtype)
        return added(values, delta, self.rounding, place)
