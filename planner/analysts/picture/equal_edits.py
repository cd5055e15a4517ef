"""The slopes of each role over its layers, with what is one and the same edit said once.

Scaling `o_proj` or `v_proj` changes the same product; scaling `q_proj` in front of a norm changes nothing. Shown one by
one, such roles look like independent findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from planner.analysts.picture.budget import Line
from planner.analysts.picture.groups import Group, Groups
from planner.analysts.picture.series import line_of, spread
from planner.evidence import EvidenceFile, Gradient

__all__ = ["slopes"]

_FACT = "probe.scale.calibrated"
_SAME = 5e-3
"""Relative difference of two slopes that are called the same: well within what a cited value may be off."""
_NOTHING = 1e-7
"""Slopes below this share of the largest are nothing but rounding."""
_FEWEST = 3
"""Layers from which on two series in proportion are called one edit: of one or two layers it would be chance."""


@dataclass
class _Edit:
    group: Group
    values: Sequence[float | None]
    alike: list[tuple[str, float]] = field(default_factory=list)
    """Roles that are the same edit, with how many times as large."""


def slopes(evidence: EvidenceFile, groups: Groups, tier: float) -> Iterator[Line]:
    """A line for each edit that is another one; experts, of which there are too many, are left out."""
    known = {tensor.name: tensor.scale for tensor in evidence.tensors}
    largest = max((abs(scale.calibrated) for scale in known.values()), default=0.0)
    nothing: list[str] = []
    edits: list[_Edit] = []
    for group in groups.layered:
        scales = [known.get(tensor.name) for tensor in group.tensors]
        if group.of_experts or not any(scales):
            continue
        if all(scale is None or _is_nothing(scale, largest) for scale in scales):
            nothing.append(group.label)
            continue
        values = [scale.calibrated if scale else None for scale in scales]
        for edit in edits:
            if ratio := _ratio(edit, group, values, floor=_NOTHING * largest):
                edit.alike.append((group.label, ratio))
                break
        else:
            edits.append(_Edit(group, values))
    for edit in edits:
        there = [value for value in edit.values if value is not None]
        # The largest sensitivity says most; the spread would favour noise around zero.
        yield Line(_told(edit, groups.layers), (tier, -max(map(abs, there)), -spread(there)), f"series of {_FACT}")
    if nothing:
        text = f"- {', '.join(nothing)} {_FACT}: nothing, what was measured is rounding"
        yield Line(text, (tier, 0.0, 0.0), f"series of {_FACT}")


def _is_nothing(scale: Gradient, largest: float) -> bool:
    # Without curvature the evidence itself takes the slope for rounding.
    return scale.step is None or abs(scale.calibrated) <= _NOTHING * largest


def _ratio(edit: _Edit, group: Group, values: Sequence[float | None], *, floor: float) -> float | None:
    """How many times the slopes of `edit` these are, where they are that in every layer."""
    if [t.layer for t in group.tensors] != [t.layer for t in edit.group.tensors]:
        return None
    pairs = [
        (one, other) for one, other in zip(edit.values, values, strict=True) if one is not None and other is not None
    ]
    if len(pairs) < len(values):
        return None
    first, second = max(pairs, key=lambda pair: abs(pair[0]))
    found = second / first if first else 0.0
    for ratio in (1.0, -1.0, found if len(pairs) >= _FEWEST else 0.0):
        if ratio and all(abs(other - ratio * one) <= max(_SAME * abs(ratio * one), floor) for one, other in pairs):
            return ratio
    return None


def _told(edit: _Edit, layers: int) -> str:
    by_ratio: Mapping[bool, list[tuple[str, float]]] = {
        same: [one for one in edit.alike if (one[1] == 1.0) == same] for same in (True, False)
    }
    labels = [edit.group.label, *(label for label, _ in by_ratio[True])]
    fact = f"{_FACT}, the same edit" if len(labels) > 1 else _FACT
    said = line_of(replace(edit.group, label=", ".join(labels)), fact, edit.values, layers)
    return said + "".join(f"; {label}: the same edit, {ratio:.4g} times this" for label, ratio in by_ratio[False])
