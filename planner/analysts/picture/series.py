"""Statistics over the layers, role by role: one line each, in the order in which statistics inform.

What repeats is said once: a series of one value, and a series that is another one to the last digit shown. Of numbered
experts a layer has its median and its ends, with the expert that lies farthest out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from planner.analysts.picture.budget import Line, Section
from planner.analysts.picture.groups import Group, Groups
from planner.analysts.picture.wording import Speaker, ranges, scientific
from planner.profile import TensorProfile

__all__ = ["FACTS", "line_of", "medians", "series", "spread", "value_of"]

FACTS = ("rms", "kurtosis", "abs_max", "std", "mean", "zeros", "outliers.6", "skewness", "min", "max", "outliers.3")
"""Statistics as a plan cites them, the most informative first."""
_OF_SINGLE = ("rms", "kurtosis", "abs_max", "std", "mean", "zeros", "outliers.6")
_OF_FUSED = ("rms", "kurtosis", "abs_max")
_MOST_SINGLE = 400
_LONGEST = 160
"""Values in one line; a longer series is told by its ends."""
_LAYERS_A_LINE = 12
"""Of experts, whose layers take more room."""
_TIER = 4
_MOST_ALIKE = 16


def series(speaker: Speaker, groups: Groups) -> Section:
    """The section on statistics."""
    named = [tensor for tensor in groups.single if not speaker.hides(tensor.name)]
    hidden = [tensor for tensor in groups.single if speaker.hides(tensor.name)]
    single = (named + hidden)[:_MOST_SINGLE]
    lines = [
        Line(
            f"- {speaker.name(tensor.name)}: {_all_of(tensor)}",
            (_TIER, 0 if number < len(named) else 0.5, number),
            "tensors outside the series",
        )
        for number, tensor in enumerate(single)
    ]
    for rank, fact in enumerate(FACTS):
        lines += _over_layers(groups, fact, rank)
    for rank, fact in enumerate(_OF_FUSED):
        lines += _fused(groups, fact, rank)
    heading = (
        "Statistics, as facts to cite of the tensor of a layer\n"
        f"Values in the order of the layers, {ranges(range(groups.layers))} unless others are given; kurtosis is "
        "excess, zeros and outliers.k (beyond k standard deviations) are counts, std is the population's."
    )
    if any(group.of_experts or group.tensors[0].experts for group in groups.layered):
        heading += " Of experts: `layer: median least@expert most@expert`, * at the one farther from the median."
    beyond = {"tensors outside the series": len(groups.single) - len(single)}
    return Section(heading, lines, beyond)


def medians(groups: Groups) -> Iterator[str]:
    """The rms of all roles in a line or two, each with the layer it is of; experts have none.

    For where sensitivities take the room that the series would have.
    """
    told = []
    for group in groups.layered:
        known = [(tensor.rms, tensor.layer) for tensor in group.tensors if tensor.understood and tensor.rms is not None]
        if known and not group.of_experts:
            value, layer = sorted(known)[(len(known) - 1) // 2]
            told.append(f"{group.label} {scientific(value)}@{layer}")
    for begin in range(0, len(told), _MOST_ALIKE):
        yield f"rms, the median of each role @ its layer: {', '.join(told[begin : begin + _MOST_ALIKE])}"


def value_of(tensor: TensorProfile, fact: str) -> float | None:
    """A statistic by the name that a plan cites it by; None where the tensor has none."""
    group, _, key = fact.partition(".")
    found: float | None = tensor.outliers.get(key) if group == "outliers" else getattr(tensor, fact)
    return found if tensor.understood else None


def _all_of(tensor: TensorProfile) -> str:
    if not tensor.understood:
        return "values of its dtype are not read"
    return ", ".join(f"{fact} {scientific(value_of(tensor, fact))}" for fact in _OF_SINGLE)


def _over_layers(groups: Groups, fact: str, rank: int) -> Iterator[Line]:
    """One statistic: a line a group, but the groups in which one value stands everywhere share theirs."""
    kind = f"series of {fact}"
    alike: dict[str, list[str]] = {}
    for group in groups.layered:
        if group.of_experts and fact not in _OF_SINGLE:
            continue  # thousands of numbers that a few lines could hardly tell
        values = [value_of(tensor, fact) for tensor in group.tensors]
        known = [value for value in values if value is not None]
        if not known:
            continue
        if len(set(values)) > 1 and group.of_experts:
            found = [(t.layer, t.expert, value) for t, value in zip(group.tensors, values, strict=True)]
            for text in _of_experts(f"{group.label} {fact}", found):
                yield Line(text, (_TIER, rank + 0.1, -spread(known)), kind)
            continue
        shown = list(map(scientific, values))
        if len(set(shown)) == 1 and len(shown) > 1:
            alike.setdefault(f"{shown[0]} in every", []).append(group.label)
        elif fact == "std" and shown == [scientific(tensor.rms) for tensor in group.tensors]:
            alike.setdefault("as rms to the last digit in every", []).append(group.label)
        else:
            yield Line(line_of(group, fact, values, groups.layers), (_TIER, rank + 0.1, -spread(known)), kind)
    for said, labels in alike.items():
        for begin in range(0, len(labels), _MOST_ALIKE):
            text = f"- {fact}: {said} {', '.join(labels[begin : begin + _MOST_ALIKE])}"
            yield Line(text, (_TIER, rank + 0.1, 0.0), kind)


def line_of(group: Group, fact: str, values: Sequence[float | None], layers: int) -> str:
    """A series over the layers of a group that has one tensor a layer, or some."""
    shown = list(map(scientific, values))
    where = [tensor.layer for tensor in group.tensors]
    told = "" if where == list(range(layers)) else f", layers {','.join(map(str, where))}"
    if len(set(shown)) == 1:
        return f"- {group.label} {fact}: {shown[0]}" + (f" in all {len(shown)}" if len(shown) > 1 else "")
    if len(shown) > _LONGEST:
        known = [(value, layer) for value, layer in zip(values, where, strict=True) if value is not None]
        (low, first), (high, last) = min(known), max(known)
        median = scientific(_median([value for value, _ in known]))
        return (
            f"- {group.label} {fact}, {len(shown)} layers: median {median}, least {scientific(low)} in layer {first}, "
            f"most {scientific(high)} in layer {last}"
        )
    return f"- {group.label} {fact}{told if len(told) < _LONGEST else _runs(where)}: {' '.join(shown)}"


def _runs(where: Sequence[int | None]) -> str:
    return f", layers {ranges(layer for layer in where if layer is not None)}"


def _median(values: Sequence[float]) -> float:
    """The lower one of the two in the middle: a value that is there."""
    return sorted(values)[(len(values) - 1) // 2]


def spread(values: Sequence[float]) -> float:
    """How much a series varies: the standard deviation over the mean magnitude; 0 where all is zero."""
    numbers = np.array(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.mean(np.abs(numbers))
        found = float(np.std(numbers) / size) if size else 0.0
    return found if math.isfinite(found) else 0.0


def _of_experts(label: str, values: Sequence[tuple[int | None, int | None, float | None]]) -> Iterator[str]:
    """Of each layer the median of its experts, the least and the most, each with its expert; `*` the farther one."""
    layers: dict[int | None, list[tuple[float, int]]] = {}
    for layer, expert, value in values:
        if value is not None:
            layers.setdefault(layer, []).append((value, expert or 0))
    told = [f"{layer}: {_ends(found)}" for layer, found in layers.items()]
    for begin in range(0, len(told), _LAYERS_A_LINE):
        yield f"- {label}, by layer: {'; '.join(told[begin : begin + _LAYERS_A_LINE])}"


def _ends(found: Sequence[tuple[float, int]]) -> str:
    median = _median([value for value, _ in found])
    (low, first), (high, last) = min(found), max(found, key=lambda entry: (entry[0], -entry[1]))
    if scientific(low) == scientific(high):
        return f"{scientific(low)} in all {len(found)}"
    below = median - low > high - median
    marks = ("*", "") if below else ("", "*")
    return f"{scientific(median)} {scientific(low)}@{first}{marks[0]} {scientific(high)}@{last}{marks[1]}"


def _fused(groups: Groups, fact: str, rank: int) -> Iterator[Line]:
    """The experts that share one tensor: what no plan can cite, but which an analyst should see."""
    for group in groups.layered:
        values = [
            (tensor.layer, number, value)
            for tensor in group.tensors
            if tensor.experts
            for number, value in enumerate(getattr(tensor.experts, fact))
        ]
        known = [value for _, _, value in values if value is not None]
        for text in _of_experts(f"{group.label} {fact} of its experts, not to be cited", values) if known else ():
            yield Line(text, (_TIER, rank + 0.2, -spread(known)), f"series of {fact} of experts")
