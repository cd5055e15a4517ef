"""Scale of attention heads."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import Number, settled
from planner.operations.ranges import NumberList

__all__ = ["HeadScale"]


class HeadScale(Operation):
    """Multiply what attention heads contribute by a factor. The target gives the layers, `part` the tensors.

    Query heads that share a key and value head can only be named together for the parts `key` and `value`.
    """

    LINEAR: ClassVar[bool] = True
    KEEPS_ZEROS: ClassVar[bool] = True
    STRUCTURED: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"heads": "0-3,7", "factor": 0.5}, before=(1, -2, 0), after=(0.5, -1, 0)),
    )

    kind: Literal["head_scale"] = "head_scale"
    """The name of the operation."""
    heads: NumberList
    """Query heads, counted from 0, such as `3` or `0-3,7`."""
    factor: Number
    """What to multiply by; 0 switches the heads off. A number, or a ramp such as `{"ramp": [1, 0.5]}`."""
    part: Literal["output", "query", "key", "value"] = "output"
    """Where: `output`, columns of the output projection; `query`, `key`, `value`, rows of that one and its bias."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w · factor, for the elements that the heads were found to mean."""
        return values * values.dtype.type(settled(self.factor))
