"""What a plan does before it is applied."""

from __future__ import annotations

from planner.effects.check import check, cited_by, edits_of
from planner.effects.difference import Difference, TensorDifference, compare
from planner.effects.predicted import Known, fitted_to, known_evidence, prediction_of
from planner.effects.problems import CITABLE, EVIDENCE_TOLERANCE
from planner.effects.types import CheckedModification, CheckedTensor, CheckReport, Moments, Preview, Standing
from planner.effects.verdicts import Judge, Verdict
from planner.plan.policy import Effect

__all__ = [
    "CITABLE",
    "EVIDENCE_TOLERANCE",
    "CheckReport",
    "CheckedModification",
    "CheckedTensor",
    "Difference",
    "Effect",
    "Judge",
    "Known",
    "Moments",
    "Preview",
    "Standing",
    "TensorDifference",
    "Verdict",
    "check",
    "cited_by",
    "compare",
    "edits_of",
    "fitted_to",
    "known_evidence",
    "prediction_of",
]
