"""What the model is: its parts in sentences, what its dtypes resolve, and every tensor's name by a pattern."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes

from planner.analysts.aliases import quoted
from planner.analysts.base import Brief
from planner.analysts.picture.budget import Line, Section
from planner.analysts.picture.groups import Group, Groups
from planner.analysts.picture.series import medians
from planner.analysts.picture.wording import Speaker, scientific
from planner.architecture.summary import summary_of
from planner.dtypes import float_dtype
from planner.profile import TensorProfile

__all__ = ["architecture"]

_MOST_FACTS = 40
_MOST_NAMES = 60
_MOST_ALIASES = 24
_LONGEST_REASON = 200
_KEPT = 1000
"""Lines of one list that are made at all."""


def architecture(brief: Brief, speaker: Speaker, groups: Groups) -> Section:
    """The section on the architecture."""
    lines = [Line(text, (0, 0), "facts of the architecture") for text in _sizes(brief, speaker)]
    lines += [
        Line(f"- {text}", (0, 1) if number < _MOST_FACTS else (5, 0), "facts of the architecture")
        for number, text in enumerate(_facts(brief, speaker))
    ]
    named = [_named(group) for group in groups.layered]
    named += [_name(tensor, speaker) for tensor in groups.single if not speaker.hides(tensor.name)]
    lines += [
        Line(f"- {text}", (0, 2) if number < _MOST_NAMES else (5, 1, number), "names of tensors")
        for number, text in enumerate(named[:_KEPT])
    ]
    hidden = [tensor for tensor in groups.single if speaker.hides(tensor.name)]
    if hidden:
        told = f"{len(hidden)} tensors have unusual names, which are data of the file; use the alias in their place:"
        lines.append(Line(told, (0, 3), "names of tensors"))
    lines += [
        Line(
            f"- {_name(tensor, speaker)} = {quoted(tensor.name)}",
            (0, 3) if number < _MOST_ALIASES else (5, 2, number),
            "aliases",
        )
        for number, tensor in enumerate(hidden[:_KEPT])
    ]
    if brief.evidence:
        lines += [Line(f"- {text}", (1.9, number), "medians of rms") for number, text in enumerate(medians(groups))]
    beyond = {"names of tensors": max(len(named) - _KEPT, 0), "aliases": max(len(hidden) - _KEPT, 0)}
    return Section("Architecture", lines, beyond)


def _sizes(brief: Brief, speaker: Speaker) -> Iterator[str]:
    profile, model = brief.profile, brief.model
    kind = quoted(profile.model_type) if profile.model_type else "unknown"
    yield (
        f"model_type {kind}; {profile.parameters:,} parameters in {len(profile.tensors):,} tensors, "
        f"{profile.bytes:,} bytes"
    )
    if not model.known:
        reason = quoted(speaker.sentence(model.reason), longest=_LONGEST_REASON)
        yield f"The dataflow of this architecture is unknown ({reason}): nothing is said of what a change does to it."
    for dtype, count in Counter(tensor.dtype for tensor in profile.tensors).most_common(6):
        yield f"{dtype} ({count:,} tensors): {_resolution(dtype)}"


def _resolution(dtype: str) -> str:
    """How near to 1 a factor is lost: half the spacing of the numbers, which lie densest, relatively, below a power of
    two and a half as dense above it (IEEE 754, round to nearest)."""
    found = float_dtype(dtype)
    if found is None:
        return "values of this dtype are not changed by this version"
    limits: Any = ml_dtypes.finfo
    epsilon = float(limits(found.storage).eps)
    return (
        f"a factor f changes no bit of a normal number where |f - 1| < {scientific(epsilon / 4)}, and every one where "
        f"|f - 1| > {scientific(epsilon / 2)}"
    )


def _facts(brief: Brief, speaker: Speaker) -> Iterator[str]:
    # A row for each of 18,000 tensors takes longer than everything else here, and nobody reads it.
    summary = summary_of(replace(brief.model, parameters={}), brief.profile.name)
    yield from (speaker.sentence(fact) for fact in summary.facts)
    if not brief.model.known:
        tied = {True: "tied", False: "not tied", None: "config.json does not say whether they are tied"}
        yield f"embedding and head: {tied[brief.profile.tied_embeddings]}"
    for tie in brief.profile.ties:
        stored = {"once": "once", "equal": "several times, the same bytes", "different": "with DIFFERENT bytes"}
        yield f"tied: {' = '.join(map(speaker.name, tie.names[:4]))}, stored {stored[tie.stored]}"
    for reason, count in Counter(summary.unread.values()).items():
        names = [name for name, why in summary.unread.items() if why == reason]
        yield f"not read by every loader: {speaker.name(names[0])}{_more(count - 1)}: {speaker.sentence(reason)}"
    if summary.unmapped:
        yield (
            "no place in the declaration of this family: "
            f"{', '.join(map(speaker.name, summary.unmapped[:3]))}{_more(len(summary.unmapped) - 3)}"
        )
    for warning in brief.profile.warnings[:3]:
        yield f"about the files: {quoted(speaker.sentence(warning), longest=_LONGEST_REASON)}"


def _more(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""


def _named(group: Group) -> str:
    first = group.tensors[0]
    count, layers = len(group.tensors), len(group.layers)
    experts = f" in {layers} layers" if group.of_experts and layers > 1 else ""
    called = "" if group.label == group.pattern else f"{group.label}: "
    return f"{called}{group.pattern} {_shape(first)}" + (f" ({count:,} tensors{experts})" if count > 1 else "")


def _name(tensor: TensorProfile, speaker: Speaker) -> str:
    return f"{speaker.name(tensor.name)} {_shape(tensor)}"


def _shape(tensor: TensorProfile) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'one number'} {tensor.dtype}"
