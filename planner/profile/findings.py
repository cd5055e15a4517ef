"""What is notable in a profile, one sentence each, the most notable first.

A rule is a function from what is known to sightings; adding one means writing it and entering it in `RULES` with its
level. A sighting's score is how many times its number exceeds the rule's threshold, so that rules can be held against
each other. Order: by level (damage before structure before deviation before notes), then by score. What stands in many
experts or layers alike is said once. Sentences hold names from the checkpoint as they are; who prints one escapes it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from planner.profile.peers import STATISTICS, Standing, peer_groups, robust_scores, standings
from planner.profile.types import Finding, NormSummary, Profile, TensorProfile
from planner.profile.wording import joined, listed, number, times

__all__ = ["findings_of"]

_MOST = 200
"""Findings in all: a profile stays readable whatever the checkpoint holds."""
_MOST_ALIKE = 3
"""Findings of one kind about one role that are said on their own; the others share a sentence."""

_FEWEST_PEERS = 5
"""A median absolute deviation of fewer numbers says nothing."""
_FAR = 6.0
"""Robust z: a normal distribution passes it once in 10^9; layers that drift along the stack stay below 4."""
_TWICE = 2.0
"""Ratio to the median of the peers: without it, peers that agree closely make trifles stand out."""
_LEAST_ELEMENTS = 4096
"""Below this the sample kurtosis of normal numbers itself has a standard error above 0.08."""
_HEAVY = 3.0
"""Excess kurtosis: that of a Laplace distribution; trained matrices without special elements stay below."""
_SKEWED = 1.0
"""Magnitude of the skewness: half that of an exponential distribution."""
_OFFSET = 0.25
"""Magnitude of mean/std of a matrix; trained ones stay below 0.1."""
_SPARSE = 0.05
"""Share of zeros: rounding alone leaves well under one in a hundred."""
_REACH = 20.0
"""Standard deviations: heavy-tailed matrices reach 10 to 15; the 'super weights' of Yu et al. (2024) lie beyond 50."""
_REACH_RATIO = 3.0
"""Ratio to the median reach of the peers."""
_LONG_ROW = 8.0
"""Largest norm of a row or column to the median one; healthy ones reach 2 to 5."""
_SHORT_ROW = 0.01
"""Smallest norm to the median one: such a row has no say beside the others."""
_FEWEST_ROWS = 16
_HEAD = 5.0
"""Norm of a head to the median head's, or the reverse; the heads of a trained projection differ by 2 or 3."""
_FEWEST_HEADS = 4
_SUBNORMAL = 0.05
"""Share of subnormal elements; each has lost one to all bits of its precision."""
_FEW_VALUES = 256
"""Distinct values of a large matrix: no more than 8 bits can say. Trained 16-bit matrices have thousands."""
_LARGE = 65_536
_WIDE = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class _Sighting:
    tensor: TensorProfile
    kind: str
    score: float
    sentence: Callable[[str], str]
    """The sentence, from what the tensor is called."""
    value: float | None = None
    typical: float | None = None
    robust_z: float | None = None
    expert: int | None = None
    """Which slice of a fused tensor is meant."""

    @property
    def which_expert(self) -> int | None:
        return self.tensor.expert if self.tensor.expert is not None else self.expert


class _Known:
    """A profile and what several rules ask of it."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        # Integers are packed codes, zero points, masks and indices: equal, constant or skewed as a rule.
        self.tensors = [tensor for tensor in profile.tensors if _is_float(tensor)]
        self._titles = Counter(map(_title, profile.tensors))

    @cached_property
    def groups(self) -> list[list[TensorProfile]]:
        return peer_groups(self.tensors)

    @cached_property
    def groups_and_singles(self) -> list[list[TensorProfile]]:
        return self.groups + [[tensor] for tensor in self.tensors if tensor.layer is None]

    def called(self, tensor: TensorProfile, expert: int | None = None) -> str:
        """`layer 3 q_proj`, or the name where that would mean two tensors."""
        if self._titles[_title(tensor)] > 1:
            return tensor.name if expert is None else f"expert {expert} of {tensor.name}"
        return _title(tensor, expert)


def _is_float(tensor: TensorProfile) -> bool:
    return tensor.understood and tensor.dtype.startswith(("F", "BF"))


def _title(tensor: TensorProfile, expert: int | None = None) -> str:
    expert = tensor.expert if tensor.expert is not None else expert
    layer = "" if tensor.layer is None else f"layer {tensor.layer} "
    return layer + ("" if expert is None else f"expert {expert} ") + _short_role(tensor)


def _short_role(tensor: TensorProfile) -> str:
    return tensor.role if tensor.expert is None else tensor.role.partition(".")[2]


def findings_of(profile: Profile) -> tuple[Finding, ...]:
    """The findings, the most notable first, at most 200, from the tensors, `ties` and `same_bytes`."""
    known = _Known(profile)
    ranked: list[tuple[int, float, Finding]] = []
    for level, rule in RULES:
        sightings = sorted(rule(known), key=lambda sighting: (sighting.kind, sighting.tensor.role))
        for _, alike in groupby(sightings, key=lambda sighting: (sighting.kind, sighting.tensor.role)):
            ranked += [(level, -score, finding) for score, finding in _told(list(alike), known)]
    ranked.sort(key=lambda entry: entry[:2])
    return tuple(finding for _, _, finding in ranked[:_MOST])


def _told(alike: list[_Sighting], known: _Known) -> Iterator[tuple[float, Finding]]:
    """Sightings of one kind and role: the strongest of each layer's experts, then the strongest layers."""
    layers: dict[object, list[_Sighting]] = {}
    for place, sighting in enumerate(sorted(alike, key=lambda sighting: -sighting.score)):
        layers.setdefault(place if sighting.which_expert is None else f"layer {sighting.tensor.layer}", []).append(
            sighting
        )
    spoken = list(layers.values())
    rest = [sightings[0].tensor for sightings in spoken[_MOST_ALIKE + 1 :]]
    for place, sightings in enumerate(spoken[: _MOST_ALIKE + 1]):
        first = sightings[0]
        sentence = first.sentence(known.called(first.tensor, first.expert))
        if experts := sorted({s.which_expert for s in sightings[1:] if s.which_expert is not None}):
            sentence += f"; likewise expert{'s' * (len(experts) > 1)} {listed(experts)}"
        if place == _MOST_ALIKE and rest:
            where = sorted({tensor.layer for tensor in rest if tensor.layer is not None})
            sentence += f"; likewise layer{'s' * (len(where) > 1)} {listed(where)}" if where else ""
        yield (
            first.score,
            Finding(
                tensor=first.tensor.name,
                kind=first.kind,
                value=_finite(first.value),
                typical=_finite(first.typical),
                robust_z=_finite(first.robust_z),
                sentence=sentence,
            ),
        )


def not_finite(known: _Known) -> Iterator[_Sighting]:
    """NaN and infinite elements: whatever they reach is lost."""
    for tensor in known.tensors:
        if count := tensor.nan + tensor.inf:
            held = [f"{tensor.nan:,} NaN"] if tensor.nan else []
            held += [f"{tensor.inf:,} infinite element{'s' * (tensor.inf > 1)}"] if tensor.inf else []
            where = [place for place, bad in enumerate(tensor.experts.nonfinite) if bad] if tensor.experts else []
            tail = f" (expert{'s' * (len(where) > 1)} {listed(where)})" if where else ""
            yield _Sighting(tensor, "not_finite", count, _says(f" holds {' and '.join(held)}{tail}"), value=count)


def torn_ties(known: _Known) -> Iterator[_Sighting]:
    """Tensors that the configuration makes one and that differ."""
    for tie in known.profile.ties:
        if tie.stored == "different":
            names = joined([known.called(known.profile.by_name[name]) for name in reversed(tie.names)])
            text = f"{names} are tied by the configuration but stored with different bytes: loaders disagree"
            yield _Sighting(known.profile.by_name[tie.names[-1]], "torn_tie", 1, _whole(text))


def constants(known: _Known) -> Iterator[_Sighting]:
    """Matrices whose elements are all equal, and vectors that are so where their peers vary (fresh ones all are)."""
    for group in known.groups_and_singles:
        varied = any(tensor.min != tensor.max for tensor in group)
        for tensor in group:
            if tensor.min is None or tensor.min != tensor.max or tensor.elements < 2 or tensor.nan or tensor.inf:
                continue
            if varied or len(tensor.shape) > 1:
                what = "all zeros" if tensor.min == 0 else f"{number(tensor.min)} throughout"
                kind = "all_zeros" if tensor.min == 0 else "constant"
                yield _Sighting(tensor, kind, 2, _says(f" is {what}"), value=tensor.min)


def dead_rows(known: _Known) -> Iterator[_Sighting]:
    """Rows, columns and whole experts of zeros in matrices that are not zero."""
    for tensor, word, norms in _sides(known):
        dead = _dead_experts(tensor) if word == "row" else []
        if dead and norms.max > 0:
            text = f"{{}}: expert{'s' * (len(dead) > 1)} {listed(dead)} zero throughout"
            yield _Sighting(tensor, "dead_expert", len(dead), _fills(text), value=0.0)
        elif norms.min == 0 < norms.max:
            text = f"more than half of the {word}s of {{}} are zero throughout"
            if norms.median:
                text = f"{word} {norms.smallest_at[0]} of {{}} is zero throughout"
            yield _Sighting(tensor, f"dead_{word}", 1, _fills(text), value=0.0, typical=norms.median)


def _dead_experts(tensor: TensorProfile) -> list[int]:
    """The slices of a fused tensor that hold zeros only."""
    each = tensor.elements // tensor.experts.count if tensor.experts else 0
    return [place for place, zeros in enumerate(tensor.experts.zeros if tensor.experts else ()) if zeros == each]


def duplicates(known: _Known) -> Iterator[_Sighting]:
    """Tensors of equal bytes that no configuration ties, save constants and what every layer holds by design."""
    tied = [set(tie.names) for tie in known.profile.ties]
    sizes = Counter((tensor.role, tensor.shape) for tensor in known.profile.tensors)
    for same in known.profile.same_bytes:
        tensors = [known.profile.by_name[name] for name in same.names]
        first = tensors[0]
        if same.constant or not _is_float(first) or any(tied_names.issuperset(same.names) for tied_names in tied):
            continue
        by_design = len(first.shape) == 1 or (first.distinct_values or 3) < 3  # frequencies; causal masks
        if by_design and len(tensors) == sizes[first.role, first.shape]:
            continue
        text = f"{_together(tensors, known)} hold the same bytes"
        if all(tensor.layer is None and len(tensor.shape) > 1 for tensor in tensors):
            text += ", though the configuration does not tie them"
        yield _Sighting(first, "same_bytes", len(tensors), _whole(text), value=len(tensors))


def _together(tensors: list[TensorProfile], known: _Known) -> str:
    roles = {(tensor.role, tensor.shape, tensor.expert) for tensor in tensors}
    layers = [tensor.layer for tensor in tensors if tensor.layer is not None]
    if len(roles) == 1 and len(set(layers)) == len(tensors):
        expert = "" if tensors[0].expert is None else f"expert {tensors[0].expert} "
        return f"layers {listed(sorted(layers))} {expert}{_short_role(tensors[0])}"
    experts = [tensor.expert for tensor in tensors if tensor.expert is not None]
    if len({(tensor.role, tensor.layer) for tensor in tensors}) == 1 and len(set(experts)) == len(tensors):
        return f"layer {tensors[0].layer} experts {listed(sorted(experts))} {_short_role(tensors[0])}"
    called = [known.called(tensor) for tensor in tensors[:4]]
    return joined(called + ([f"{len(tensors) - 4} more"] if len(tensors) > 4 else []))


def unlike_peers(known: _Known) -> Iterator[_Sighting]:
    """Layers and experts whose statistics lie far from those of the same role elsewhere."""
    for group in known.groups:
        found = {name: list(_deviations(name, group)) for name in _DEVIATIONS}
        for name, sightings in found.items():
            explained = {(s.tensor.name, s.expert) for s in found.get(_EXPLAINED_BY.get(name, ""), ())}
            yield from (s for s in sightings if (s.tensor.name, s.expert) not in explained)


def _deviations(name: str, group: list[TensorProfile]) -> Iterator[_Sighting]:
    matrices_only = _DEVIATIONS[name][2]
    if matrices_only and (len(group[0].shape) < 2 or group[0].elements < _LEAST_ELEMENTS):
        return
    for standing in standings(group, name) if len(group) >= _FEWEST_PEERS else ():
        yield from _deviation(name, standing, None)
    if name in ("rms", "kurtosis"):
        slices = ((tensor, place) for tensor in group if tensor.experts for place in range(tensor.experts.count))
        values = ((which, getattr(which[0].experts, name)[which[1]]) for which in slices)
        scores = robust_scores(values, logarithmic=STATISTICS[name].logarithmic)
        for (tensor, place), value, z in scores.scored if len(scores.scored) >= _FEWEST_PEERS else ():
            yield from _deviation(name, Standing(tensor, value, scores.typical, z), place)


def _deviation(name: str, standing: Standing, expert: int | None) -> Iterator[_Sighting]:
    words, exceeds, _ = _DEVIATIONS[name]
    value, typical = standing.value, standing.typical
    score = exceeds(value, typical) if abs(standing.robust_z) >= _FAR else 0.0
    if score >= 1:
        compared = f"the median of its peers is {number(typical)}"
        if STATISTICS[name].logarithmic or (name == "kurtosis" and typical > 0.5):  # a ratio to almost 0 says nothing
            compared = f"{times(value / typical)} its peers (median {number(typical)})"
        text = f": {words} {number(value)}, {compared}"
        yield _Sighting(standing.tensor, name, score, _says(text), value, typical, standing.robust_z, expert)


def _ratio_score(value: float, typical: float) -> float:
    return max(value / typical, typical / value) / _TWICE


_DEVIATIONS: dict[str, tuple[str, Callable[[float, float], float], bool]] = {
    "rms": ("rms", _ratio_score, False),
    "kurtosis": ("kurtosis", lambda value, typical: value / max(_HEAVY, _TWICE * typical), True),
    "skewness": ("skewness", lambda value, typical: abs(value - typical) / _SKEWED, True),
    "offset": ("mean/std", lambda value, typical: abs(value - typical) / _OFFSET, True),
    "zeros": (
        "share of zeros",
        lambda value, typical: value / max(_SPARSE, _TWICE * typical) if value < 1 else 0,
        True,
    ),
    "stable_rank": ("stable rank", _ratio_score, True),
    "spectral_norm": ("largest singular value", _ratio_score, True),
}
"""Statistic: what it is called, its score from value and median, and whether only large matrices have a say."""
_EXPLAINED_BY = {"skewness": "kurtosis", "spectral_norm": "rms"}
"""Statistic to the one that says it all where both stand out: a few far elements; a larger matrix."""


def far_elements(known: _Known) -> Iterator[_Sighting]:
    """Single elements far out in a large matrix, more so than in the other layers."""
    for group in known.groups_and_singles:
        if len(group[0].shape) < 2 or group[0].elements < _LEAST_ELEMENTS:
            continue
        found = standings(group, "reach")
        compared = len(found) >= _FEWEST_PEERS
        for standing in found:
            if standing.value < _REACH or (compared and standing.value < _REACH_RATIO * standing.typical):
                continue
            z, typical = (standing.robust_z, standing.typical) if compared else (None, None)
            largest = standing.tensor.largest[:1]
            where = f"element ({', '.join(map(str, largest[0].index))})" if largest else "the largest element"
            value = largest[0].value if largest else standing.tensor.abs_max or 0.0
            text = f"{where} of {{}} is {number(value)}: {standing.value:,.0f} standard deviations"
            text += f", where its peers' largest are at {typical:,.0f}" if typical else ""
            yield _Sighting(
                standing.tensor, "element", standing.value / _REACH, _fills(text), standing.value, typical, z
            )


def uneven_rows(known: _Known) -> Iterator[_Sighting]:
    """Rows and columns with a norm far from the median one."""
    for tensor, word, norms in _sides(known):
        if norms.count < _FEWEST_ROWS or not norms.median or not norms.min:
            continue
        for norm, place, score in (
            (norms.max, norms.largest_at[0], norms.max / norms.median / _LONG_ROW),
            (norms.min, norms.smallest_at[0], _SHORT_ROW * norms.median / norms.min),
        ):
            if score >= 1:
                text = f"{word} {place} of {{}} has norm {number(norm)}, {times(norm / norms.median)} the median {word}"
                yield _Sighting(tensor, word, score, _fills(text), norm, norms.median)


def uneven_heads(known: _Known) -> Iterator[_Sighting]:
    """Attention heads far weaker or stronger than the median head beside them."""
    for tensor in known.tensors:
        for heads in tensor.heads:
            median = statistics.median(heads.norms) if len(heads.norms) >= _FEWEST_HEADS else 0.0
            if not median:
                continue
            scored = [
                (max(norm / median, median / norm if norm else math.inf), head) for head, norm in enumerate(heads.norms)
            ]
            factor, head = max(scored, key=lambda entry: entry[0])
            if factor >= _HEAD:
                norm = heads.norms[head]
                part = f"{heads.part} " if len(tensor.heads) > 1 else ""
                text = f": {part}head {head} has {times(norm / median)} the norm of the median head"
                yield _Sighting(tensor, "head", min(factor, 1e6) / _HEAD, _says(text), norm, median)


def lost_precision(known: _Known) -> Iterator[_Sighting]:
    """Large shares of subnormal elements, and large matrices of few different values."""
    for tensor in known.tensors:
        share = tensor.subnormals / tensor.elements if tensor.elements else 0.0
        if share >= _SUBNORMAL:
            text = f": {share:.0%} of the elements are subnormal in {tensor.dtype}, which costs them precision"
            yield _Sighting(tensor, "subnormals", share / _SUBNORMAL, _says(text), share)
        distinct = tensor.distinct_values or 0
        if tensor.dtype in _WIDE and tensor.elements >= _LARGE and 2 < distinct <= _FEW_VALUES:
            text = f" takes only {distinct} different values, as if it had been quantised"
            yield _Sighting(tensor, "few_values", _FEW_VALUES / distinct, _says(text), distinct)


RULES: tuple[tuple[int, Callable[[_Known], Iterator[_Sighting]]], ...] = (
    *((0, rule) for rule in (not_finite, torn_ties)),
    *((1, rule) for rule in (constants, dead_rows, duplicates)),
    *((2, rule) for rule in (unlike_peers, far_elements, uneven_rows, uneven_heads)),
    (3, lost_precision),
)
"""Every rule with its level: 0 damage, 1 structure, 2 deviation, 3 a note."""


def _sides(known: _Known) -> Iterator[tuple[TensorProfile, str, NormSummary]]:
    for tensor in known.tensors:
        if tensor.rows and tensor.columns and min(tensor.rows.count, tensor.columns.count) > 1:  # a vector has none
            yield tensor, "row", tensor.rows
            yield tensor, "column", tensor.columns


def _says(text: str) -> Callable[[str], str]:
    return lambda called: called + text


def _whole(text: str) -> Callable[[str], str]:
    return lambda _: text


def _fills(text: str) -> Callable[[str], str]:
    return lambda called: text.replace("{}", called)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
