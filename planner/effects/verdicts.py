"""The verdict on a set of changes: what they provably do to the logits, for each way of loading the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planner.architecture import ModelMap
from planner.architecture.graph import Softcap
from planner.effects.changes import Change
from planner.effects.factors import TOLERANCE, uniform
from planner.effects.interpreter import Outcome, interpret
from planner.effects.proofs import doubted, explained, named
from planner.effects.types import Effect
from planner.effects.values import ANYTHING, SAME, Value

__all__ = ["BY_CONFIG", "BY_FILE", "Judge", "Verdict"]

BY_CONFIG = "transformers before 5, and vLLM before August 2026, take the embedding for the head"
BY_FILE = "transformers from 5 on (and vLLM since) reads two stored copies that differ as two tensors"


@dataclass(frozen=True)
class Verdict:
    """An effect, and the one sentence that proves it."""

    effect: Effect
    why: str


@dataclass(frozen=True)
class Judge:
    """Judges changes of the tensors of one checkpoint. Only changes of stored bits are to be brought before it."""

    model: ModelMap
    zero: frozenset[str] = frozenset()
    """Tensors that hold nothing but zeros."""
    copies_differ: bool = False
    """Whether the stored head and the embedding that the configuration ties it to hold different bytes already."""
    rounded: bool = True
    """Whether weights are stored in 16 bits or fewer, so that rounding is left over where a factor cancels."""

    def verdict(self, changes: Mapping[str, Change], *, tie_kept: bool = False) -> Verdict:
        """What the changes do together. `tie_kept`: head and embedding are changed alike, to the same bytes."""
        if not changes:
            return Verdict("void", "computed from every stored element: no bit changes")
        read = {n: c for n, c in changes.items() if n not in self.model.unread and n not in self.model.read_elsewhere}
        if not read:
            return self._of_unread(changes)
        if not self.model.known:
            return Verdict("unknown", f"the dataflow is not known: {self.model.reason}")
        if strange := [name for name in read if name not in self.model.parameters]:
            return Verdict("unknown", f"{strange[0]} has no place in the map of a {self.model.family} model")
        moved = {name: change for name, change in read.items() if not change.identity}
        if not moved:
            what = named([self.model.parameters[name] for name in read])
            return Verdict("invariant", f"{what}: no value changes, at most the sign of a zero")
        found = self._by_loader(moved, tie_kept=tie_kept)
        elsewhere = next((name for name in changes if name in self.model.read_elsewhere), None)
        if elsewhere and found.effect != "effective":
            why = f"without {elsewhere} {found.effect} ({found.why}); of that, {self.model.read_elsewhere[elsewhere]}"
            return Verdict("loader_dependent", why)
        return found

    def _of_unread(self, changes: Mapping[str, Change]) -> Verdict:
        for name in changes:
            if name in self.model.read_elsewhere:
                return Verdict("loader_dependent", f"{name}: {self.model.read_elsewhere[name]}")
        name = next(iter(changes))
        return Verdict("ignored", f"{name}: {self.model.unread[name]}")

    def _by_loader(self, changes: Mapping[str, Change], *, tie_kept: bool) -> Verdict:
        head, embedding = self.model.head, self.model.embedding
        if not (self.model.tied and head and embedding):
            return self._interpreted(changes, {})[0]
        tied, old = self._interpreted(changes, {head: embedding})
        if not (self.copies_differ or ((head in changes or embedding in changes) and not tie_kept)):
            return tied
        apart, new = self._interpreted(changes, {})
        if _all_zero(old) and _all_zero(new):
            return tied
        touched = [name for name in (head, embedding) if name in changes]
        if tied.effect == apart.effect:
            if not touched or tied.effect == "invariant":
                return tied
            # The same in kind, though not the same logits: that is said, and is no other effect.
            return Verdict(apart.effect, f"{apart.why}; loaders then disagree on the head: {BY_CONFIG}; {BY_FILE}")
        return Verdict(
            "loader_dependent",
            f"{(touched or [head])[0]} is one of two stored copies that config.json ties: {BY_CONFIG} "
            f"({tied.effect}: {tied.why}); {BY_FILE} ({apart.effect}: {apart.why})",
        )

    def _interpreted(self, changes: Mapping[str, Change], alias: Mapping[str, str]) -> tuple[Verdict, Value]:
        """The verdict for one way of loading, and what is known of the logits."""
        graph = self.model.graph
        assert graph is not None, "callers ask only with a known map"
        read = {name: change for name, change in changes.items() if name not in alias}
        if not read:
            return Verdict("ignored", "this loader does not read it"), SAME
        capped = isinstance(graph.nodes[-1], Softcap)
        outcome = interpret(graph, read, zero=self.zero, alias=alias)
        effect = _effect(outcome, capped=capped)
        changed = [self.model.parameters[name] for name in read]
        if outcome.doubts:
            hopeful = interpret(graph, read, zero=self.zero, alias=alias, hopeful=True)
            if _effect(hopeful, capped=capped) != effect:
                return Verdict("unknown", doubted(graph, changed, outcome.doubts[0])), ANYTHING
        measured = any(change.measured for change in read.values())
        why = explained(graph, changed, outcome, effect, rounded=self.rounded, measured=measured)
        return Verdict(effect, why), outcome.logits


def _all_zero(logits: Value) -> bool:
    return logits.pure and bool(np.all(np.asarray(logits.factor) == 0))


def _effect(outcome: Outcome, *, capped: bool) -> Effect:
    logits = outcome.logits
    if logits.same:
        return "invariant"
    factor = uniform(logits.factor)
    if not isinstance(factor, float) or not factor > 0 or np.any(logits.offset):
        return "effective"
    if abs(factor - 1) <= TOLERANCE and not capped:
        return "shifts_logits"
    return "rescales_logits"
