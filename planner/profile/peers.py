"""How a tensor compares with its peers: the tensors of the same role and shape in the other layers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from planner.profile.types import TensorProfile

__all__ = ["Standing", "peer_groups", "standings"]


@dataclass(frozen=True)
class Standing:
    """Where a tensor's rms stands among those of its peers."""

    tensor: TensorProfile
    median_rms: float
    """Median of the group's rms, the tensor's own included."""
    robust_z: float
    """(log rms - median) · 0.6745 / median absolute deviation; where more than half of the group agree and that is 0,
    / (1.2533 · mean absolute deviation) instead (Iglewicz and Hoaglin, 1993); 0 where all agree."""


def peer_groups(tensors: Iterable[TensorProfile]) -> list[list[TensorProfile]]:
    """Tensors of the same role, shape and dtype in different layers, in the order of the layers."""
    groups: dict[tuple[str, tuple[int, ...], str], list[TensorProfile]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            groups.setdefault((tensor.role, tensor.shape, tensor.dtype), []).append(tensor)
    return [sorted(group, key=lambda tensor: (tensor.layer or 0, tensor.name)) for group in groups.values()]


def standings(group: list[TensorProfile]) -> list[Standing]:
    """The standing of every tensor of a group whose rms is positive. The logarithm makes twice and half alike."""
    logarithms = {tensor.name: math.log(tensor.rms) for tensor in group if tensor.rms}
    if not logarithms:
        return []
    median = statistics.median(logarithms.values())
    distances = [abs(value - median) for value in logarithms.values()]
    # Both factors make the deviation of a normal distribution come out as its standard deviation.
    deviation = statistics.median(distances) / 0.6745 or 1.2533 * statistics.fmean(distances)
    return [
        Standing(
            tensor=tensor,
            median_rms=math.exp(median),
            robust_z=(logarithms[tensor.name] - median) / deviation if deviation > 0 else 0.0,
        )
        for tensor in group
        if tensor.name in logarithms
    ]
