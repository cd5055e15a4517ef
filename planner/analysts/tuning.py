"""Strengths by measurement: every candidate on the tuning suite, within a budget, and the best that may pass.

A candidate passes where it would pass the suite's gates `not_worse` and `max_drift` and the raw loss of the objective
is not worse. Of those the one with the lowest calibrated loss is kept. It was chosen among several, so its p-value is
adjusted for all that were looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from planner.evaluation import Score, Scorer, Suite, decisive_metric
from planner.evaluation.gates import DEFAULT_MARGIN
from planner.evaluation.statistics import Comparison, holm
from planner.evaluation.verdicts import Calibration, verdict_of
from planner.evidence.measured import Floats
from planner.probes.descent import Descent
from planner.probes.factor_space import FactorSpace
from planner.probes.natural_steps import Step

__all__ = ["Candidate", "Tell", "Tuned", "Tuning", "counted", "refused_by", "tuned_metrics"]

_SHORTER = 0.85
_STRENGTHS_EACH_WAY = 4
_KEPT_FOR_STRENGTHS = 4
_PATIENCE = 2
_SHRINK = 0.6
_WEAKEST = 0.02
_NEAR_THE_LIMIT = 0.95

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One point that was measured."""

    at: Floats
    """The logs of its factors."""
    steps: int
    """Steps of the walk behind it."""
    strength: float
    """What its logs were multiplied by."""
    raw: Comparison
    """Of the objective, against the model as it is."""
    calibration: Calibration
    """Of the objective, each side at its own best temperature."""
    drift: float | None
    """Mean KL divergence on the suite's drift text; None where no gate asks for it."""
    refused: str | None
    """The first thing that it would not pass; None where it passes."""

    @property
    def loss(self) -> float:
        """The calibrated difference: what is lowered."""
        return self.calibration.comparison.difference


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a tuning found."""

    best: Candidate | None
    """The best that passes; None where none does."""
    p_holm: float | None
    """Its calibrated p-value, adjusted for all candidates."""
    significant: bool
    """Whether the calibrated loss is lower, as a verdict asks for it."""
    evaluations: int
    """Evaluations spent."""
    step: Step | None
    """The first step of the walk; None where there was none."""
    candidates: tuple[Candidate, ...]
    """Every point that was measured and finite, in order."""
    broken: int
    """Points whose loss was not finite."""


def tuned_metrics(suite: Suite) -> frozenset[str]:
    """The metrics that a candidate is measured on: the objective, and those that may not get worse."""
    guarded = [gate.metric for gate in suite.gates if gate.rule == "not_worse" and gate.metric]
    return frozenset([decisive_metric(suite).name, *guarded])


@dataclass(eq=False)
class Tuning:
    """A search along one walk, with a budget."""

    scorer: Scorer
    """With the suite, measuring at least `tuned_metrics`."""
    suite: Suite
    budget: int
    """Evaluations that may be spent."""
    limit: Callable[[FactorSpace, Floats], Floats]
    """Brings a point back to where it is allowed."""
    tell: Tell = lambda _what, _done, _total: None
    found: list[Candidate] = field(default_factory=list)
    broken: int = 0
    first: Step | None = None

    def search(self, descent: Descent, space: FactorSpace) -> Tuned:
        """Measure the points of a walk, then others near the best."""
        self._walk(descent, space)
        if self.best is None:
            self._shrink(space)
        else:
            self._between(space)
            self._strengths(space)
        best = self._with_drift(space)
        adjusted = holm([candidate.calibration.comparison.p_value for candidate in self.found])
        p_holm = adjusted[self.found.index(best)] if best else None
        significant = False
        if best is not None and p_holm is not None:
            verdict = verdict_of(best.calibration.comparison, p_holm)
            significant = verdict == "improved" and not best.calibration.at_limit
        return Tuned(best, p_holm, significant, self.scorer.spent, self.first, tuple(self.found), self.broken)

    @property
    def best(self) -> Candidate | None:
        """The best so far that passes."""
        return min((c for c in self.found if c.refused is None), key=lambda c: c.loss, default=None)

    def _left(self) -> int:
        return self.budget - self.scorer.spent

    def _walk(self, descent: Descent, space: FactorSpace) -> None:
        kept = min(_KEPT_FOR_STRENGTHS, self.budget // 3)
        waiting = 0
        with closing(descent.walk(space, tell=counted(self.tell, "measuring sensitivities", descent.tokens))) as walk:
            for number, waypoint in enumerate(walk, start=1):
                self.first = self.first or waypoint.step
                before = self.best
                self.measure(space, waypoint.at, steps=number, strength=1.0)
                waiting = 0 if self.best is not before or before is None else waiting + 1
                if waiting == _PATIENCE or self._left() <= kept:
                    return

    def _shrink(self, space: FactorSpace) -> None:
        """Nothing passes: shorter and shorter first steps until one does."""
        first = next(iter(self.found), None)
        strength = 1.0
        limits = [gate.limit for gate in self.suite.gates if gate.rule == "max_drift" and gate.limit is not None]
        while first is not None and self.best is None and self._left():
            drift = self.found[-1].drift
            ratio = _SHRINK
            if limits and drift:  # drift grows as the square of a strength
                ratio = min(ratio, _NEAR_THE_LIMIT * float(np.sqrt(min(limits) / drift)))
            strength *= ratio
            if strength < _WEAKEST:
                return
            self.measure(space, strength * first.at, steps=first.steps, strength=strength)

    def _between(self, space: FactorSpace) -> None:
        """The walk went on to a point that does not pass: try the way between."""
        best = self.best
        assert best is not None, "it is asked for only where there is one"
        after = next((c for c in self.found if c.steps == best.steps + 1 and c.refused), None)
        if after is None:
            return
        low, high = 0.0, 1.0
        for _ in range(2):
            if not self._left():
                return
            middle = (low + high) / 2
            point = best.at + middle * (after.at - best.at)
            tried = self.measure(space, point, steps=best.steps + 1, strength=1.0)
            if tried is not None and tried.refused is None:
                low = middle
            else:
                high = middle

    def _strengths(self, space: FactorSpace) -> None:
        """Shorter, then longer ones than the best, each as long as it helps."""
        base = self.best
        assert base is not None, "it is asked for only where there is one"
        for ratio in (_SHORTER, 1 / _SHORTER):
            strength = 1.0
            for _ in range(_STRENGTHS_EACH_WAY):
                if not self._left():
                    return
                strength *= ratio
                tried = self.measure(space, strength * base.at, steps=base.steps, strength=strength)
                if tried is not self.best:
                    break
            if self.best is not base:
                return  # what is shorter helps: then what is longer does not

    def _with_drift(self, space: FactorSpace) -> Candidate | None:
        """The best, with its drift; where no gate asked for it, one more evaluation finds it."""
        best = self.best
        if best is None or best.drift is not None or not self._left():
            return best
        score = self._scored(space, best.at, drift=True)
        known = replace(best, drift=score.drift.kl_mean if score.drift else None)
        self.found[self.found.index(best)] = known
        return known

    def _scored(self, space: FactorSpace, at: Floats, *, drift: bool) -> Score:
        what = f"evaluation {self.scorer.spent + 1} of at most {self.budget}"
        total = self.scorer.tokens
        return self.scorer.score(space.values(at), drift=drift, step=counted(self.tell, what, total))

    def measure(self, space: FactorSpace, at: Floats, *, steps: int, strength: float) -> Candidate | None:
        """Spend one evaluation on a point; None where its loss is not finite."""
        at = self.limit(space, at)
        asked = any(gate.rule == "max_drift" for gate in self.suite.gates)
        score = self._scored(space, at, drift=asked)
        objective = score.metrics[decisive_metric(self.suite).name]
        if objective.raw is None or objective.calibrated is None:
            self.broken += 1
            return None
        candidate = Candidate(
            at=at,
            steps=steps,
            strength=strength,
            raw=objective.raw,
            calibration=objective.calibrated,
            drift=score.drift.kl_mean if score.drift else None,
            refused=refused_by(self.suite, score),
        )
        self.found.append(candidate)
        return candidate


def refused_by(suite: Suite, score: Score) -> str | None:
    """The first rule that a score breaks, in words; None where it breaks none."""
    objective = decisive_metric(suite).name
    raw = score.metrics[objective].raw
    if raw is None:
        return f"the loss of {objective} is not finite"
    if verdict_of(raw, raw.p_value) == "worse":
        return f"the raw loss of {objective} rises by {raw.difference:.4f}"
    for gate in suite.gates:
        if gate.rule == "not_worse" and gate.metric:
            metric = score.metrics[gate.metric]
            margin = DEFAULT_MARGIN if gate.margin is None else gate.margin
            if metric.raw is None or metric.calibrated is None:
                return f"the loss of {gate.metric} is not finite"
            highest = max(metric.raw.interval[1], metric.calibrated.comparison.interval[1])
            if highest > margin:
                return f"{gate.metric} may be {highest:.4f} worse, above the margin {margin:g}"
        elif gate.rule == "max_drift" and gate.limit is not None and score.drift is not None:
            if score.drift.kl_mean is None:
                return "the drift is not finite"
            if score.drift.kl_mean > gate.limit:
                return f"the drift is {score.drift.kl_mean:.4g}, above the limit {gate.limit:g}"
    return None


def counted(tell: Tell, what: str, total: int) -> Callable[[int], None]:
    """Tokens as they are told, added up; anew from 0 when all are done."""
    done = 0

    def step(tokens: int) -> None:
        nonlocal done
        done = done + tokens if done < total else tokens
        tell(what, done, total)

    return step
