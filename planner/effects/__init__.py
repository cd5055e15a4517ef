"""What a plan does before it is applied."""

from __future__ import annotations

from planner.effects.check import EVIDENCE_TOLERANCE, check, operations_by_tensor
from planner.effects.difference import Difference, TensorDifference, compare
from planner.effects.types import CheckedModification, CheckedTensor, CheckReport, Effect, Moments, Preview

__all__ = [
    "EVIDENCE_TOLERANCE",
    "CheckReport",
    "CheckedModification",
    "CheckedTensor",
    "Difference",
    "Effect",
    "Moments",
    "Preview",
    "TensorDifference",
    "check",
    "compare",
    "operations_by_tensor",
]
