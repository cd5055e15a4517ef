"""What scaling a tensor does here, before anything is tried: the verdicts of the dataflow, role by role."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from planner.analysts.base import Brief
from planner.analysts.picture.budget import Line, Section
from planner.analysts.picture.groups import Group, Groups
from planner.analysts.picture.wording import Speaker, ranges
from planner.dtypes import float_dtype
from planner.edits.selecting import as_matrix
from planner.effects import Judge, Verdict
from planner.effects.changes import Change
from planner.profile import TensorProfile

__all__ = ["effect_rules"]

_FACTOR = 1.05
_MOST_JUDGED = 1000
"""Tensors that are judged one by one; of a checkpoint with more, or with experts, three layers of each role."""
_MOST_SINGLE = 24
_LAYER = re.compile(r" in layer \d+( \(the first of several\))?")
_WIDE = ("F32", "F64")


def effect_rules(brief: Brief, speaker: Speaker, groups: Groups) -> Section:
    """The section on effects; what cannot be known is `unknown`."""
    bench = _Bench(brief, speaker)
    heading = f"What multiplying a whole tensor by {_FACTOR} does, from the dataflow alone"
    if not brief.model.known:
        line = Line("unknown for every tensor: the dataflow of this architecture is not known", (1,), "effect rules")
        return Section(heading, [line])
    # The dataflow of experts is long, and their layers are built alike.
    every = not any(group.of_experts for group in groups.layered) and len(brief.profile.tensors) <= _MOST_JUDGED
    told: dict[str, list[str]] = {}
    for group in groups.layered:
        for said, which in bench.of_group(group, every=every).items():
            told.setdefault(said, []).append(which)
    usual = [tensor for tensor in groups.single if not speaker.hides(tensor.name)]
    for tensor in usual[:_MOST_SINGLE]:
        verdict = bench.verdict([tensor])
        told.setdefault(bench.said(verdict, tensor.role) + bench.of_row(tensor, verdict), []).append(tensor.name)
    lines = [Line(f"- {'; '.join(which)}: {said}", (1,), "effect rules") for said, which in told.items()]
    return Section(heading, lines, {"effect rules": max(len(usual) - _MOST_SINGLE, 0)})


class _Bench:
    """Judges changes of a checkpoint's tensors by its profile alone, as `planner check` judges them."""

    def __init__(self, brief: Brief, speaker: Speaker) -> None:
        known, model = brief.profile.by_name, brief.model
        head, embedding = (known.get(name) if name else None for name in (model.head, model.embedding))
        self.speaker = speaker
        self.zero = frozenset(t.name for t in brief.profile.tensors if t.elements and t.zeros == t.elements)
        self._odd = {known[name].layer for name in self.zero}
        self.judge = Judge(
            model, zero=self.zero, copies_differ=bool(head and embedding and head.digest != embedding.digest)
        )

    def of_group(self, group: Group, *, every: bool) -> Mapping[str, str]:
        """Which tensors of a group have which verdict, in words: verdict to tensors."""
        judged = _judged(group, every=every)
        known: dict[object, Verdict] = {}
        verdicts = []
        for tensor in judged:
            alike = self._alike(tensor)
            if alike not in known:
                known[alike] = self.verdict([tensor])
            verdicts.append(known[alike])
        by_verdict: dict[str, list[TensorProfile]] = {}
        words: dict[Verdict, str] = {}
        for tensor, verdict in zip(judged, verdicts, strict=True):
            if verdict not in words:
                words[verdict] = self.said(verdict, tensor.role)
            by_verdict.setdefault(words[verdict], []).append(tensor)
        middle = len(judged) // 2
        beside = self.of_row(judged[middle], verdicts[middle])
        # Of experts, those of one layer: thousands of changes at once are no rule that anybody would ask for.
        beside_it = [t for t in group.tensors if not group.of_experts or t.layer == judged[middle].layer]
        together = self.verdict(beside_it).effect
        if {verdict.effect for verdict in verdicts} != {together}:
            which = "all experts of a layer" if group.of_experts else "all of them"
            beside += f"; {which} at once: {together}"
        found = {}
        for said, tensors in by_verdict.items():
            layers = ranges(t.layer for t in tensors if t.layer is not None)
            where = f" layers {layers}" if len(by_verdict) > 1 else ""
            if len(judged) < len(group.tensors):
                expert = f"expert {tensors[0].expert} of " if group.of_experts else ""
                where = f" (judged: {expert}layers {layers})"
            found[said + beside] = group.label + where
        return found

    def _alike(self, tensor: TensorProfile) -> object:
        """What tensors of a role have in common whose verdicts are the same.

        That is how their layer is declared, how their dtype rounds, and whether other layers lie on both sides: the
        first and the last one, and those that hold a tensor of zeros, stand for themselves.
        """
        decoder, layer = self.judge.model.decoder, tensor.layer
        if decoder is None or layer is None or layer in self._odd or not 0 < layer < decoder.layers - 1:
            return tensor.name
        return decoder.layer(layer), tensor.dtype in _WIDE

    def of_row(self, tensor: TensorProfile, whole: Verdict) -> str:
        """What the same factor on one row of a matrix does, where that is another effect."""
        rows = as_matrix(tensor.shape)[0]
        if rows == 1 or whole.effect in ("void", "unknown"):
            return ""
        factors = np.ones(rows)
        factors[0] = _FACTOR
        row = self.verdict([tensor], Change(rows=factors)).effect
        return f"; one row alone: {row}" if row != whole.effect else ""

    def verdict(self, tensors: Sequence[TensorProfile], change: Change | None = None) -> Verdict:
        """Of scaling these tensors together."""
        changed = [tensor for tensor in tensors if tensor.name not in self.zero]
        if not changed:
            return Verdict("void", "every element is zero")
        if any(float_dtype(tensor.dtype) is None for tensor in changed):
            return Verdict("unknown", "values of its dtype are not changed by this version")
        narrow = any(tensor.dtype not in _WIDE for tensor in changed)
        judge = self.judge if narrow else replace(self.judge, rounded=False)
        return judge.verdict({tensor.name: change or Change(rows=_FACTOR) for tensor in changed})

    def said(self, verdict: Verdict, role: str) -> str:
        """A verdict in words, without the number of the layer, and without the role that it begins with."""
        why = _LAYER.sub("", verdict.why).removeprefix(f"{role}: ").removeprefix(f"{role} ")
        return f"{verdict.effect} ({self.speaker.sentence(why)})"


def _judged(group: Group, *, every: bool) -> Sequence[TensorProfile]:
    """One expert of each layer; every layer, or the first, the middle and the last."""
    expert = min(tensor.expert for tensor in group.tensors if tensor.expert is not None) if group.of_experts else None
    tensors = [tensor for tensor in group.tensors if tensor.expert == expert] or list(group.tensors[:1])
    if every and not group.of_experts:
        return tensors
    return [tensors[place] for place in sorted({0, len(tensors) // 2, len(tensors) - 1})]
