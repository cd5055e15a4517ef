"""Scale of the MLP's neurons."""

from __future__ import annotations

from typing import ClassVar, Literal

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.numbers import Number, settled
from planner.operations.ranges import NumberList

__all__ = ["NeuronScale"]


class NeuronScale(Operation):
    """Multiply neurons of the MLP by a factor. The target gives the layers, `part` the tensors.

    The part `down` scales exactly what the neurons contribute.
    """

    LINEAR: ClassVar[bool] = True
    KEEPS_ZEROS: ClassVar[bool] = True
    STRUCTURED: ClassVar[bool] = True
    EXAMPLES: ClassVar[tuple[Example, ...]] = (
        Example({"neurons": "17,400-402", "factor": 2}, before=(1, -2, 0), after=(2, -4, 0)),
    )

    kind: Literal["neuron_scale"] = "neuron_scale"
    """The name of the operation."""
    neurons: NumberList
    """Neurons (intermediate dimensions), counted from 0, such as `17` or `0-3,7`."""
    factor: Number
    """What to multiply by; 0 switches the neurons off. A number, or a ramp such as `{"ramp": [1, 0.5]}`."""
    part: Literal["down", "up", "gate_and_up"] = "down"
    """Where: `down`, columns of the down projection; `up`, rows of the up projection; `gate_and_up`, rows of both."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w · factor, for the elements that the neurons were found to mean."""
        return values * values.dtype.type(settled(self.factor))
