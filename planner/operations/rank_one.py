"""Rank one."""

from __future__ import annotations

from typing import ClassVar, Literal

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
    u: ArrayFile
    """Vector of one number a row."""
    v: ArrayFile
    """Vector of one number a column."""
    strength: Number
    """What to multiply the outer product by."""
    rounding: Rounding = "once"
    """Whether the sum alone is rounded to the stored dtype (`once`) or the product before it too (`delta_first`)."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """W + strength · u vᵀ, computed as `low_rank_add` does with u and v for its matrices of rank one.

        Raises ValueError where u or v has another length than the tensor's.
        """
        rows, columns = place.shape
        u, v = array_of(place, "u", rows), array_of(place, "v", columns)
        mine = u[place.first : place.first + len(values), None]
        delta = low_rank_delta(mine, v[None, :], settled(self.strength), values.dtype)
        return added(values, delta, self.rounding, place)
