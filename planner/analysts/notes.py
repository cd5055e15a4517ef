"""What a plan from evidence says of itself as a whole: what was measured, at what price, or why there is nothing."""

from __future__ import annotations

from planner.analysts.factor_plan import Found
from planner.analysts.tuning import Tuned
from planner.evaluation import Suite, decisive_metric
from planner.evaluation.statistics import Comparison
from planner.evidence import EvidenceFile
from planner.evidence.prediction import Prediction
from planner.probes.natural_steps import Step

__all__ = [
    "hopeless_note",
    "no_gain_note",
    "no_step_note",
    "nothing_allowed_note",
    "one_step_note",
    "rounded_away_note",
    "tuned_note",
]


def hopeless_note(evidence: EvidenceFile) -> str:
    """Refused before it starts."""
    reach = "; ".join(
        f"{'a factor for each tensor' if ceiling.kind == 'tensors' else 'a factor for each row and column'} "
        f"{ceiling.gain:.2g}{'' if ceiling.gain_se is None else f' ± {ceiling.gain_se:.1g}'}"
        for ceiling in evidence.ceilings
    )
    return (
        "no gain is to be expected here, and no evaluation was spent on looking for one: the most that documents which "
        f"did not choose a step bear out, in nats of calibrated loss, is {reach}"
    )


def nothing_allowed_note(evidence: EvidenceFile) -> str:
    """No candidate."""
    return (
        f"nothing to propose: the policy allows no scale of any of the {len(evidence.tensors)} measured tensors that "
        "the loss feels"
    )


def no_step_note(evidence: EvidenceFile, step: Step | None) -> str:
    """The evidence alone gives none."""
    if step is None:
        why = "what one part of the documents proposes, the others do not bear out"
    else:
        agreeing = int((step.by_part.sum(axis=1) > 0).sum())
        parts = len(step.by_part)
        why = f"the parts of the documents do not agree: a step that helps by {agreeing} of {parts} hurts by the others"
    return f"no calibrated gain was found in the evidence of {evidence.groups} groups of documents: {why}"


def no_gain_note(suite: Suite, tuned: Tuned, budget: int, drift_weight: float) -> str:
    """Tuning found nothing that counts."""
    name = decisive_metric(suite).name
    spent = f"{tuned.evaluations} of {budget} evaluations of {suite.name} were spent (drift weight {drift_weight:g})"
    best = min(tuned.candidates, key=lambda candidate: candidate.loss, default=None)
    if tuned.evaluations == 0:
        return f"no calibrated gain was found: no step is borne out by documents that did not choose it; {spent}"
    if best is None:
        return f"no calibrated gain was found: the loss of {name} is not finite at any point that was tried; {spent}"
    numbers = _difference(best.calibration.comparison)
    if tuned.best is None:
        return (
            f"no plan was found that the suite lets pass: the lowest calibrated loss of {name} was {numbers}, but "
            f"{best.refused}; {spent}"
        )
    numbers = _difference(tuned.best.calibration.comparison)
    adjusted = f", p = {tuned.p_holm:.3g} adjusted for {len(tuned.candidates)} candidates" if tuned.p_holm else ""
    return (
        f"no calibrated gain was found: the best point changes the calibrated loss of {name} by {numbers}{adjusted}; "
        f"{spent}"
    )


def rounded_away_note(found: Found) -> str:
    """The step is too small to be stored."""
    return (
        f"a step over {len(found.space.vectors)} tensors was found, but within the policy's limits it is so small that "
        "rounding to the stored dtype leaves every weight as it is"
    )


def one_step_note(found: Found, prediction: Prediction, evidence: EvidenceFile, count: int) -> str:
    """One step from the evidence; nothing was run."""
    agreeing = int((found.step.by_part.sum(axis=1) > 0).sum())
    trusted = "" if prediction.trusted else f" The prediction is a rough one: {prediction.why}."
    return (
        f"One natural-gradient step over {count} tensors, from the evidence alone; nothing was run. Predicted for "
        f"documents that did not choose it: {-found.step.gain:+.4f} nats per {_unit(evidence)} of calibrated loss, "
        f"penalty included ({agreeing} of {len(found.step.by_part)} parts of the documents agree). Also predicted: "
        f"{prediction.raw.difference:+.4f} of the raw loss, and a drift of {prediction.drift:.3g} nats per token; "
        f"drift weight {found.drift_weight:g}.{trusted} Measure it: "
        "planner evaluate, or tune it: --tune SUITE."
    )


def tuned_note(found: Found, budget: int, count: int) -> str:
    """What the tuning measured."""
    tuned, suite = found.tuned, found.suite
    assert tuned is not None, "it was tuned"
    assert suite is not None, "it was tuned"
    best = tuned.best
    assert best is not None, "a plan has a best point"
    before, after = best.calibration.temperatures
    drift = f"{best.drift:.3g} nats per token" if best.drift is not None else "not measured"
    p_holm = "" if tuned.p_holm is None else f", {tuned.p_holm:.2g} adjusted for {len(tuned.candidates)} candidates"
    shared = (
        f" {found.shared} documents of the tuning text are in the text of the evidence as well, which flatters this."
        if found.shared
        else ""
    )
    return (
        f"{best.steps} natural-gradient step{'s' if best.steps > 1 else ''} over {count} tensors, strength "
        f"{best.strength:.3g}; {tuned.evaluations} of {budget} evaluations of {suite.name} were spent. On it, "
        f"{decisive_metric(suite).name}: calibrated {_difference(best.calibration.comparison)}, p = "
        f"{best.calibration.comparison.p_value:.2g}{p_holm}; raw {_difference(best.raw)}; best temperature "
        f"{before:.3g} before, {after:.3g} after. Drift on {suite.drift.text}: {drift}; drift weight "
        f"{found.drift_weight:g}.{shared} The strength was chosen on these documents: evaluate the result on others."
    )


def _difference(found: Comparison) -> str:
    low, high = found.interval
    return f"{found.difference:+.4f} ({low:+.4f} to {high:+.4f}) nats per token"


def _unit(evidence: EvidenceFile) -> str:
    return "question" if evidence.objective.kind == "choice" else "token"
