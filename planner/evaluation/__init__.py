"""Paired evaluation of a candidate against its baseline: suites, text loss, statistics, gates.

Importing this package loads neither torch nor transformers; `evaluate` does.
"""

from __future__ import annotations

from planner.evaluation.evaluate import Progress, evaluate
from planner.evaluation.gates import judge
from planner.evaluation.report import (
    Calibrated,
    DriftResult,
    Evaluation,
    GateResult,
    MetricResult,
    Side,
    SuiteIdentity,
    Temperatures,
    TextIdentity,
)
from planner.evaluation.suite import Drift, Gate, Metric, Suite, Text, load_suite

__all__ = [
    "Calibrated",
    "Drift",
    "DriftResult",
    "Evaluation",
    "Gate",
    "GateResult",
    "Metric",
    "MetricResult",
    "Progress",
    "Side",
    "Suite",
    "SuiteIdentity",
    "Temperatures",
    "Text",
    "TextIdentity",
    "evaluate",
    "judge",
    "load_suite",
]
