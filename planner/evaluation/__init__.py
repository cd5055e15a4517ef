"""Paired evaluation of a candidate against its baseline: suites, text loss, statistics, controls, gates.

Importing this package loads neither torch nor transformers; `evaluate` does.
"""

from __future__ import annotations

from planner.evaluation.controls import Wanted, decisive_metric
from planner.evaluation.evaluate import Progress, evaluate
from planner.evaluation.foretold import with_foretold
from planner.evaluation.gates import judge
from planner.evaluation.report import (
    Calibrated,
    Controls,
    DriftResult,
    Evaluation,
    Foretold,
    GateResult,
    MetricResult,
    NoiseFloor,
    RandomPlans,
    Side,
    Spread,
    SuiteIdentity,
    TemperatureAlone,
    Temperatures,
    TextIdentity,
)
from planner.evaluation.scoring import Changes, MetricScore, Score, Scorer
from planner.evaluation.suite import Drift, Gate, Metric, Suite, Text, load_suite, suite_of

__all__ = [
    "Calibrated",
    "Changes",
    "Controls",
    "Drift",
    "DriftResult",
    "Evaluation",
    "Foretold",
    "Gate",
    "GateResult",
    "Metric",
    "MetricResult",
    "MetricScore",
    "NoiseFloor",
    "Progress",
    "RandomPlans",
    "Score",
    "Scorer",
    "Side",
    "Spread",
    "Suite",
    "SuiteIdentity",
    "TemperatureAlone",
    "Temperatures",
    "Text",
    "TextIdentity",
    "Wanted",
    "decisive_metric",
    "evaluate",
    "judge",
    "load_suite",
    "suite_of",
    "with_foretold",
]
