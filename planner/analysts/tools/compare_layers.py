"""compare_layers: one statistic of one role over the layers, and which layers stand out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, ClassVar

from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.figures import figure, row, shape_text
from planner.analysts.tools.selection import StatisticName, meaning_of, role_called, statistic_called, with_statistics
from planner.profile import Standing, TensorProfile, peer_groups, standings
from planner.profile.peers import STATISTICS
from planner.profile.types import Experts
from planner.records import Record

__all__ = ["CompareLayers"]

_OF_SLICES = ("mean", "std", "rms", "abs_max", "kurtosis")


class Comparison(Record):
    """What to compare."""

    role: str
    """The role, such as down_proj or input_layernorm."""
    statistic: StatisticName
    """The statistic."""


class CompareLayers(AgentTool[Comparison]):
    """One statistic of one role over all layers, with the median and each layer's robust z-score: how many robust
    standard deviations it lies from the median of its peers. Experts are summarised layer by layer."""

    name: ClassVar[str] = "compare_layers"
    Arguments: ClassVar[type[Record]] = Comparison
    less: ClassVar[str] = "list_tensors takes layers"

    def parameters(self, bench: Bench) -> dict[str, Any]:
        """With the statistics that this profile has."""
        return with_statistics(super().parameters(bench), "statistic", bench)

    def run(self, arguments: Comparison, bench: Bench) -> str:
        """A line for each layer; tensors of different shapes or dtypes are compared apart."""
        role, statistic = role_called(arguments.role, bench), statistic_called(arguments.statistic, bench)
        groups = peer_groups(tensor for tensor in bench.brief.profile.tensors if tensor.role == role)
        if not groups:
            raise ToolRefused(f"{bench.roles[role]} is outside the layers; tensor_statistics describes it")
        blocks = [block for group in groups if (block := list(_block(group, statistic, bench)))]
        if not blocks:
            raise ToolRefused(f"no tensor of the role {bench.roles[role]} has {statistic}; others here do")
        return "\n\n".join(
            "\n".join([f"{bench.roles[role]}, {meaning_of(statistic)}, {block[0]}", *block[1:]]) for block in blocks
        )


def _block(group: Sequence[TensorProfile], statistic: str, bench: Bench) -> Iterator[str]:
    found = standings(group, statistic)
    if not found:
        return
    scale = "z of the logarithm" if STATISTICS[statistic].logarithmic else "z of the value"
    left_out = f", {len(group) - len(found)} have none" if len(found) < len(group) else ""
    yield (
        f"{group[0].dtype} {shape_text(group[0].shape)}: {len(found)} tensors{left_out}, "
        f"median {figure(found[0].typical)}, robust {scale}"
    )
    layers = [list(some) for _, some in groupby(found, key=lambda one: one.tensor.layer)]
    if any(len(some) > 1 for some in layers):
        yield row("layer", "tensors", "median", "min", "max", "farthest", "its value", "its z")
        yield from (_summary(some, bench) for some in layers)
        return
    yield row("layer", "name", "value", "z")
    for (one,) in layers:
        name = bench.aliases.shown(one.tensor.name)
        yield row(str(one.tensor.layer), name, figure(one.value), f"{one.robust_z:+.2f}")
        if one.tensor.experts and statistic in _OF_SLICES:
            yield _slices(one.tensor.experts, statistic)


def _summary(some: Sequence[Standing], bench: Bench) -> str:
    values = [one.value for one in some]
    far = max(some, key=lambda one: abs(one.robust_z))
    middle = statistics.median(values)
    return row(
        str(far.tensor.layer),
        str(len(some)),
        *map(figure, (middle, min(values), max(values))),
        bench.aliases.shown(far.tensor.name),
        figure(far.value),
        f"{far.robust_z:+.2f}",
    )


def _slices(experts: Experts, statistic: str) -> str:
    numbered = [(value, place) for place, value in enumerate(getattr(experts, statistic)) if value is not None]
    if not numbered:
        return f"  its {experts.count} experts have none"
    (low, least), (high, most) = min(numbered), max(numbered)
    middle = statistics.median(value for value, _ in numbered)
    return (
        f"  its {experts.count} experts: median {figure(middle)}, from {figure(low)} (expert {least}) "
        f"to {figure(high)} (expert {most})"
    )
