"""The rules with evidence: a factor for each row of the tensors that matter, found by measured slopes and curvature.

Without a tuning suite it takes one natural-gradient step from the arrays of the evidence alone. With one, it walks on
with the model itself, measures every point on the suite, and keeps the strength that does best there. Either way it
says plainly when there is nothing to be had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planner.analysts.base import Brief, drafted
from planner.analysts.candidates import candidate_space, limit_by
from planner.analysts.factor_plan import FactorPlan, Found
from planner.analysts.goal_text import documents_of, goal_groups
from planner.analysts.notes import (
    hopeless_note,
    no_gain_note,
    no_step_note,
    nothing_allowed_note,
    one_step_note,
    rounded_away_note,
    tuned_note,
)
from planner.analysts.tuning import Tell, Tuning, counted, tuned_metrics
from planner.architecture import ModelMap, map_of
from planner.checkpoint import Checkpoint
from planner.errors import EvidenceUnusable
from planner.evaluation import Suite, decisive_metric
from planner.evidence import EvidenceFile, Measured
from planner.evidence.prediction import LARGEST_DRIFT
from planner.plan import AnalystRecord, EvidenceRef, Plan
from planner.probes.descent import SMALLEST_GAIN, Descent, evidence_point, neutral_text
from planner.probes.factor_space import FactorSpace
from planner.probes.natural_steps import Step, leave_one_out_of_step, next_step

if TYPE_CHECKING:
    from torch.nn import Parameter

__all__ = ["GUARDED_DRIFT_WEIGHT", "MOST", "MeasuredAnalyst", "Proposal", "Study"]

MOST = 44
"""Modifications, unless the user says otherwise: few enough for a person to read."""
_MOST_PARTS = 0.8
GUARDED_DRIFT_WEIGHT = 3.0
"""How much a nat of predicted drift counts against a nat of loss where the suite has a gate against harm."""


@dataclass(frozen=True, eq=False)
class Study:
    """What the analyst works from."""

    checkpoint: Checkpoint
    path: Path
    """The evidence file."""
    evidence: EvidenceFile
    measured: Measured
    suite: Suite | None = None
    """What to tune on; None for one step from the evidence alone."""
    budget: int = 30
    """Evaluations of the suite that may be spent."""
    most: int = MOST
    """Modifications at most; the policy may allow fewer."""
    drift_weight: float | None = None
    """How much predicted drift counts against the loss; None: 0, or 3 where the suite has a gate against harm."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """A plan, with the file of factors that belongs beside it."""

    plan: Plan
    arrays: bytes | None
    """The file; None for a plan without modifications."""
    evaluations: int = 0
    """Evaluations of the suite that were spent."""


@dataclass(frozen=True)
class Nothing:
    """Why there is no plan, and what it cost to find out."""

    note: str
    evaluations: int = 0


class MeasuredAnalyst:
    """Writes a plan of factor vectors from evidence."""

    def __init__(self, study: Study, *, tell: Tell | None = None) -> None:
        self._study = study
        self._tell = tell or (lambda _what, _done, _total: None)
        shapes = {name: tensor.shape for name, tensor in study.checkpoint.tensors.items()}
        self._model: ModelMap = map_of(study.checkpoint.config, shapes)

    def propose(self, brief: Brief, *, arrays_file: str) -> Proposal:
        """A plan inside the policy of `brief`; its factors are to lie beside it, in the file of that name.

        Raises `EvidenceUnusable` for evidence of other weights, or whose texts are gone; with a suite also what loading
        and measuring the model raise.
        """
        study = self._study
        if study.evidence.checkpoint.fingerprint != brief.profile.fingerprint:
            raise EvidenceUnusable(
                f"{study.path} was measured on {study.evidence.checkpoint.fingerprint[:19]}, this checkpoint is "
                f"{brief.profile.fingerprint[:19]}",
                hint="measure anew: planner probe",
            )
        if study.evidence.ceilings and all(ceiling.hopeless for ceiling in study.evidence.ceilings):
            return self._empty(brief, hopeless_note(study.evidence))
        space = candidate_space(study.checkpoint, self._model, study.measured, brief.policy)
        count = min(study.most, brief.policy.most_modifications, brief.policy.most_tensors)
        if not space.vectors or "scale" not in brief.policy.operations:
            return self._empty(brief, nothing_allowed_note(study.evidence))
        found = self._one_step(brief, space, count) if study.suite is None else self._tuned(brief, space, count)
        if isinstance(found, Nothing):
            return self._empty(brief, found.note, found.evaluations)
        plan = FactorPlan(found, study.evidence, study.measured, self._model)
        if not plan.vectors:
            return self._empty(brief, rounded_away_note(found), found.tuned.evaluations if found.tuned else 0)
        return self._proposal(brief, plan, arrays_file)

    @property
    def _drift_weight(self) -> float:
        study = self._study
        if study.drift_weight is not None:
            return study.drift_weight
        gates = study.suite.gates if study.suite else ()
        return GUARDED_DRIFT_WEIGHT if any(gate.rule in ("not_worse", "max_drift") for gate in gates) else 0.0

    def _one_step(self, brief: Brief, space: FactorSpace, count: int) -> Found | Nothing:
        """From the evidence alone, or why not."""
        step = self._step(space)
        if step is not None and len(space.vectors) > count:
            missed = leave_one_out_of_step(
                evidence_point(self._study.measured, space),
                self._study.measured.goal.coarse,
                list(space.slices.values()),
            )
            order = np.argsort(-missed, kind="stable")[:count]
            space = space.only([space.vectors[place].tensor for place in order])
            step = self._step(space)
        if step is None or not _agreed(step):
            return Nothing(no_step_note(self._study.evidence, step))
        at = limit_by(brief.policy, brief.profile)(space, step.move)
        drift = neutral_text(self._study.measured, space, 1.0).drift(at)
        if drift > LARGEST_DRIFT:
            at = at * np.sqrt(LARGEST_DRIFT / drift)
        return Found(space, at, step, self._drift_weight, tuned=None, suite=None, shared=0)

    def _step(self, space: FactorSpace) -> Step | None:
        measured = self._study.measured
        point = evidence_point(measured, space)
        penalty = neutral_text(measured, space, self._drift_weight) if self._drift_weight else None
        return next_step([point], measured.goal.coarse, penalty, np.zeros(space.size))

    def _tuned(self, brief: Brief, space: FactorSpace, count: int) -> Found | Nothing:
        """With the model, on the suite; or why not."""
        from planner.evaluation import Scorer
        from planner.evaluation.pair import load_itself
        from planner.inference import context_of, parameters_by_tensor, quiet, require_torch

        study, suite = self._study, self._study.suite
        assert suite is not None, "there is one to tune on"
        require_torch("tuning")
        with quiet():
            self._tell("loading the model", 0, 0)
            pair = load_itself(study.checkpoint.path)
            groups = goal_groups(
                study.evidence, study.measured, study.path, pair.tokenizers[0], context_of(pair.baseline)
            )
            scorer = Scorer(study.checkpoint, suite, metrics=tuned_metrics(suite), seed=study.evidence.seed, pair=pair)
            limit = limit_by(brief.policy, brief.profile)
            shapes = {name: tensor.shape for name, tensor in study.checkpoint.tensors.items()}
            parameters = parameters_by_tensor(pair.baseline, shapes)
            space = _loaded(space, parameters)
            if not space.vectors:
                return Nothing(nothing_allowed_note(study.evidence))
            descent = Descent(
                model=pair.baseline,
                parameters=parameters,
                groups=groups,
                measured=study.measured,
                inverse_temperature=1 / study.evidence.objective.temperature,
                drift_weight=self._drift_weight,
                limit=limit,
                seed=study.evidence.seed,
            )
            kept = descent.shortlist(space, count, tell=self._counted("choosing tensors", descent.tokens))
            tuned = Tuning(scorer, suite, study.budget, limit, self._tell).search(descent, kept)
        if tuned.best is None or not tuned.significant or tuned.step is None:
            return Nothing(no_gain_note(suite, tuned, study.budget, self._drift_weight), tuned.evaluations)
        own = documents_of(study.evidence, study.path)
        shared = sum(document in own for document in suite.documents(decisive_metric(suite).text))
        return Found(kept, tuned.best.at, tuned.step, self._drift_weight, tuned=tuned, suite=suite, shared=shared)

    def _counted(self, what: str, total: int) -> Callable[[int], None]:
        return counted(self._tell, what, total)

    def _empty(self, brief: Brief, note: str, evaluations: int = 0) -> Proposal:
        plan = drafted(brief, AnalystRecord(kind="rules"), ())
        return Proposal(plan.model_copy(update={"note": note, "evidence": self._reference}), None, evaluations)

    @property
    def _reference(self) -> EvidenceRef:
        return EvidenceRef(file=self._study.path.name, id=self._study.evidence.id)

    def _proposal(self, brief: Brief, plan: FactorPlan, file: str) -> Proposal:
        found, evidence = plan.found, self._study.evidence
        count = len(plan.vectors)
        note = (
            one_step_note(found, plan.prediction, evidence, count)
            if found.tuned is None
            else tuned_note(found, self._study.budget, count)
        )
        arrays = plan.arrays({"by": "planner propose --analyst rules", "evidence": evidence.id, "how": note})
        made = drafted(brief, AnalystRecord(kind="rules"), plan.modifications(file, arrays))
        spent = found.tuned.evaluations if found.tuned else 0
        return Proposal(made.model_copy(update={"note": note, "evidence": self._reference}), arrays, spent)


def _loaded(space: FactorSpace, parameters: Mapping[str, Parameter]) -> FactorSpace:
    """Without tensors that the loaded model has not as they are stored, or ties to others that would not change."""
    from planner.evaluation.scoring import stored_copies

    copies = stored_copies(parameters)
    return space.only(
        [
            vector.tensor
            for vector in space.vectors
            if vector.tensor in parameters and set(copies.get(vector.tensor, vector.names)) == set(vector.names)
        ]
    )


def _agreed(step: Step) -> bool:
    """Whether a step is borne out well enough to be proposed without a measurement."""
    slopes = step.by_part.sum(axis=1)
    return step.gain >= SMALLEST_GAIN and bool((slopes > 0).mean() >= _MOST_PARTS)
