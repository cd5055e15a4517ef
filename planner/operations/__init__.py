"""What can be done to a tensor: one file an operation, all of them listed here and nowhere else.

To add one: copy `scale.py`, write its docstring, examples and `apply`, add it to the union below. The tests, the
schema, the prompt catalogue and the README table follow from the class by themselves.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from planner.operations.bake_steering import BakeSteering
from planner.operations.base import Example, Operation
from planner.operations.beside import named_beside
from planner.operations.blend import Blend
from planner.operations.boost import Boost
from planner.operations.channel_scale import ChannelScale
from planner.operations.clamp import Clamp
from planner.operations.fold import Folded, Step, fold, pointwise
from planner.operations.head_scale import HeadScale
from planner.operations.low_rank_add import LowRankAdd
from planner.operations.neuron_scale import NeuronScale
from planner.operations.noise import Noise
from planner.operations.normalize import Normalize
from planner.operations.numbers import FORMS, ArrayFile, Number, Ramp
from planner.operations.project_out import ProjectOut
from planner.operations.quantiles import Beyond, beyond_quantile_of_counts, beyond_quantile_of_values
from planner.operations.ranges import numbers_in
from planner.operations.rank_one import RankOne
from planner.operations.rank_reduce import RankReduce
from planner.operations.reduce import Reduce
from planner.operations.rotate import Rotate
from planner.operations.scale import Factors, Scale
from planner.operations.selection import EVERYTHING, Columns, Everything, Rows, Selection, ValueRanges
from planner.operations.shift import Shift
from planner.operations.soft_threshold import SoftThreshold
from planner.operations.spectral_clamp import SpectralClamp
from planner.operations.spectral_scale import SpectralScale
from planner.operations.zero import Zero

__all__ = [
    "EVERYTHING",
    "FORMS",
    "OPERATIONS",
    "AnyOperation",
    "ArrayFile",
    "BakeSteering",
    "Beyond",
    "Blend",
    "Boost",
    "ChannelScale",
    "Clamp",
    "Columns",
    "Everything",
    "Example",
    "Factors",
    "Folded",
    "HeadScale",
    "LowRankAdd",
    "NeuronScale",
    "Noise",
    "Normalize",
    "Number",
    "Operation",
    "ProjectOut",
    "Ramp",
    "RankOne",
    "RankReduce",
    "Reduce",
    "Rotate",
    "Rows",
    "Scale",
    "Selection",
    "Shift",
    "SoftThreshold",
    "SpectralClamp",
    "SpectralScale",
    "Step",
    "ValueRanges",
    "Zero",
    "beyond_quantile_of_counts",
    "beyond_quantile_of_values",
    "fold",
    "named_beside",
    "numbers_in",
    "pointwise",
]

_Union = (
    Scale
    | Shift
    | Clamp
    | Zero
    | SoftThreshold
    | Noise
    | Reduce
    | Boost
    | HeadScale
    | NeuronScale
    | ChannelScale
    | Normalize
    | ProjectOut
    | Rotate
    | RankOne
    | LowRankAdd
    | BakeSteering
    | SpectralScale
    | SpectralClamp
    | RankReduce
    | Blend
)
AnyOperation = Annotated[_Union, Field(discriminator="kind")]
"""Any operation, told apart by its `kind`."""

OPERATIONS: dict[str, type[Operation]] = {
    operation.model_fields["kind"].default: operation for operation in get_args(_Union)
}
"""The operations by kind."""
