"""From what a plan does to tensors to what the evidence predicts of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from planner.edits import ModificationEdits, Unresolved
from planner.edits.selecting import as_matrix
from planner.edits.surroundings import Surroundings
from planner.effects.changes import change_of
from planner.effects.factors import Factors, is_unknown
from planner.errors import EvidenceUnusable, FileUnreadable
from planner.evidence import EvidenceFile, Measured, load_arrays, read_evidence
from planner.evidence.measured import Floats
from planner.evidence.prediction import Move, Prediction, predict
from planner.operations import Shift, Step
from planner.operations.selection import Everything
from planner.plan import Plan

__all__ = ["Known", "evidence_beside", "fitted_to", "known_evidence", "prediction_of"]

Known = tuple[EvidenceFile, Measured]
"""An evidence file with its arrays."""


def known_evidence(path: Path) -> Known:
    """The evidence in a file. Raises `FileUnreadable` or `EvidenceUnusable`."""
    evidence = read_evidence(path)
    return evidence, load_arrays(path, evidence)


def evidence_beside(plan: Plan, folder: Path) -> Known | str | None:
    """The evidence that a plan in `folder` names; why it cannot be had; None where the plan names none."""
    if plan.evidence is None:
        return None
    path = folder / plan.evidence.file
    try:
        found = known_evidence(path)
    except (FileUnreadable, EvidenceUnusable) as error:
        return error.message
    if found[0].id != plan.evidence.id:
        return f"{path} is other evidence than the plan was made with"
    return found


def prediction_of(
    edits: Iterable[ModificationEdits], around: Surroundings, known: Known, *, fitted: bool = False
) -> Prediction:
    """What the evidence predicts of these modifications, all together and each by itself.

    `fitted` says that the plan was computed from this very evidence: what it predicts of it is then flattery.
    """
    evidence, measured = known
    moves: dict[str, list[Move]] = {}
    left_out: dict[str, str] = {}
    for edit in edits:
        try:
            moves[edit.id] = [
                _move(name, step, as_matrix(around.checkpoint.tensors[name].shape), evidence, measured)
                for name, step in edit.steps.items()
                if name in around.checkpoint.tensors
            ]
            if edit.added:
                raise Unresolved("it adds tensors", hint="")
        except Unresolved as error:
            moves.pop(edit.id, None)
            left_out[edit.id] = str(error)
    prediction = predict(evidence, measured, moves, left_out)
    if not fitted:
        return prediction
    why = (
        "the plan was fitted to this very evidence, which flatters it: the loss somewhat, the drift by a factor of a "
        "hundred. `evaluate` on other texts says what it does"
    )
    return prediction.model_copy(update={"trusted": False, "why": why})


def fitted_to(plan: Plan) -> str | None:
    """The id of the evidence that the plan was computed from; None where it only cites some, or none."""
    return plan.evidence.id if plan.evidence and plan.analyst.kind == "rules" else None


def _move(name: str, step: Step, shape: tuple[int, int], evidence: EvidenceFile, measured: Measured) -> Move:
    """One tensor's change as steps. Raises `Unresolved` with the reason where it is no scale or shift."""
    if name not in measured.layout.places:
        raise Unresolved(f"{name} was not measured: {evidence.not_measured.get(name, 'not in the evidence')}", hint="")
    if isinstance(step.operation, Shift) and isinstance(step.selection, Everything):
        offset = step.operation.offset
        if isinstance(offset, float | int):
            return Move(name, shift=float(offset))
    change = change_of([step], shape)
    if change.added != "nothing" or change.arbitrary or change.measured:
        kind = getattr(step.operation, "kind", "it")
        raise Unresolved(f"{kind} on {name} is no factor for rows or columns", hint="")
    return Move(name, rows=_log(change.rows, name), columns=_log(change.columns, name))


def _log(factors: Factors, name: str) -> Floats | float:
    values = np.asarray(factors, dtype=np.float64)
    if is_unknown(factors):
        raise Unresolved(f"a factor on {name} is known only once it is applied", hint="")
    if (values <= 0).any():
        raise Unresolved(f"it multiplies {name} by a factor of 0 or below, which no small step predicts", hint="")
    return float(np.log(values)) if isinstance(factors, float) else np.log(values)
