"""Scale of channels of the residual stream."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import Number, settled
from planner.operations.ranges import NumberList

__all__ = ["ChannelScale"]


class ChannelScale(Operation):
    """Multiply channels of the residual stream by a factor. The target gives the layers, `part` the tensors."""

    LINEAR: ClassVar[bool] = True
    KEEPS_ZEROS: ClassVar[bool] = True
    STRUCTURED: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"channels": "310", "factor": 0.5}, before=(1, -2, 0), after=(0.5, -1, 0)),
    )

    kind: Literal["channel_scale"] = "channel_scale"
    """The name of the operation."""
    channels: NumberList
    """Channels (hidden dimensions), counted from 0, such as `310` or `0-3,7`."""
    factor: Number
    """What to multiply by. A number, or a ramp such as `{"ramp": [1, 0.5]}`."""
    part: Literal["writers", "readers"] = "writers"
    """Where: `writers`, rows and biases of what adds to the stream; `readers`, columns of what takes from it."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w · factor, for the elements that the channels were found to mean."""
        return values * values.dtype.type(settled(self.factor))
