"""What evidence predicted of a plan, beside what was measured."""

from __future__ import annotations

from planner.checkpoint import Checkpoint
from planner.edits import Unresolved, resolved, surroundings_of
from planner.effects import Known, prediction_of
from planner.evaluation.controls import Wanted
from planner.evaluation.report import Evaluation, Foretold
from planner.evaluation.suite import Suite

__all__ = ["with_foretold"]


def with_foretold(
    found: Evaluation,
    suite: Suite,
    baseline: Checkpoint,
    made_by: Wanted,
    known: Known,
) -> Evaluation:
    """The evaluation with what the evidence predicted of the modifications that made the candidate.

    The metric is the one on the goal text of the evidence, else the one that the controls are for. Modifications that
    cannot be resolved any longer (their arrays are gone) leave the evaluation as it is.
    """
    evidence, _ = known
    around = surroundings_of(baseline, made_by.folder)
    try:
        edits = [resolved(one, around) for one in made_by.modifications or ()]
        prediction = prediction_of(edits, around, known, fitted=made_by.fitted == evidence.id)
    except Unresolved:
        return found
    goal = next((text.digest for text in evidence.texts if text.role == "goal"), None)
    texts = {text.name: text.digest for text in suite.texts}
    same = next((metric.name for metric in suite.metrics if texts[metric.text] == goal), None)
    name = same or found.controls.metric
    metric = next(metric for metric in found.metrics if metric.name == name)
    foretold = Foretold(
        evidence=evidence.id,
        metric=name,
        same_text=same is not None,
        raw=prediction.raw,
        measured_raw=metric.difference,
        calibrated=prediction.calibrated,
        measured_calibrated=metric.calibrated.difference if metric.calibrated else None,
        drift=prediction.drift,
        measured_drift=found.drift.kl_mean,
        trusted=prediction.trusted,
        why=prediction.why,
    )
    return found.model_copy(update={"foretold": foretold})
