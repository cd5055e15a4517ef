"""Low-rank add."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.limits import array_of
from planner.operations.low_rank import Rounding, added, low_rank_delta
from planner.operations.numbers import ArrayFile, Number, settled

__all__ = ["LowRankAdd"]


class LowRankAdd(Operation):
    """Add the product of two thin matrices, W + weight · scaling · BA: a LoRA adapter, or matrices of your own.

    The scaling is what the adapter's configuration says (alpha / r, or alpha / √r), and 1 for matrices of your own.
    """

    POINTWISE: ClassVar[bool] = False
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example(
            {
                "a": {"file": "delta.safetensors", "array": "a"},
                "b": {"file": "delta.safetensors", "array": "b"},
                "weight": 0.5,
            },
            before=((1, 0), (0, 1), (1, 1)),
            after=((2, 2), (0, 1), (2, 0)),
            arrays={"a": ((1, 2), (0, 1)), "b": ((2, 0), (0, 0), (2, -6))},
        ),
    )

    kind: Literal["low_rank_add"] = "low_rank_add"
    """The name of the operation."""
    lora: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Folder of a PEFT LoRA adapter, relative to the plan's folder; instead of a and b."""
    a: ArrayFile | None = None
    """Matrix [r, columns]."""
    b: ArrayFile | None = None
    """Matrix [rows, r]."""
    weight: Number = 1.0
    """What to multiply the product by; -1 takes the adapter away."""
    rounding: Rounding = "once"
    """Whether the sum alone is rounded to the stored dtype (`once`) or the product before it too (`delta_first`)."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.a is None) != (self.b is None) or (self.lora is None) == (self.a is None):
            raise ValueError("low_rank_add needs either lora, or both a and b")
        return self

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """W + (weight · scaling) · BA, BA in float32 (float64 for F64), the factor rounded to that precision.

        "once" is the sum in float32, rounded to the stored dtype by whoever stores it. peft 0.21.2 merges a Linear or
        Conv1D this way by default (it keeps adapters in float32, and torch adds a float32 to a bfloat16 in place with
        one rounding), and so does mergekit's base+lora, which calls it. "delta_first" rounds the product to the
        stored dtype, then the sum: peft with safe_merge=True, peft on an Embedding always, and peft where the adapter
        was loaded in the model's own 16-bit dtype.

        `place.arrays` holds a [r, columns] and b [rows, r] in the orientation of the stored tensor, and, for an
        adapter, scaling []. Raises ValueError where they do not fit the tensor or each other.
        """
        rows, columns = place.shape
        a = array_of(place, "a", None, columns)
        b = array_of(place, "b", rows, len(a))
        scaling = float(array_of(place, "scaling")) if "scaling" in place.arrays else 1.0
        mine = b[place.first : place.first + len(values)]
        delta = low_rank_delta(mine, a, scaling * settled(self.weight), values.dtype)
        return added(values, delta, self.rounding, place)
