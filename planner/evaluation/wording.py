"""What an evaluation found of one metric, in words: the same ones on the screen, at a gate and in a ledger."""

from __future__ import annotations

from planner.evaluation.report import MetricResult
from planner.evaluation.verdicts import RESOLUTION

__all__ = ["broken", "finding", "headline", "numbers_of"]


def headline(metric: MetricResult) -> str:
    """The metric, how much was compared, the verdict."""
    below = metric.difference is not None and 0 < abs(metric.difference) < RESOLUTION
    why = f" (below {RESOLUTION:g}, the resolution)" if below else ""
    return f"{metric.name}: {metric.n} documents, {metric.tokens:,} tokens: {metric.verdict}{why}"


def finding(metric: MetricResult) -> str:
    """The headline and the differences with their intervals."""
    finite = metric.difference is not None and metric.interval is not None and metric.calibrated is not None
    return f"{headline(metric)}; {numbers_of(metric) if finite else broken(metric)}"


def broken(metric: MetricResult) -> str:
    """What is to say where the candidate's loss is not finite."""
    return f"the candidate's loss is not finite on {metric.nonfinite_documents} of {metric.n} documents"


def numbers_of(metric: MetricResult) -> str:
    """The differences with their intervals; the metric must have them."""
    assert metric.difference is not None
    assert metric.interval is not None
    assert metric.calibrated is not None
    calibrated = metric.calibrated
    return (
        f"raw {metric.difference:+.5f} ({metric.interval[0]:+.5f} to {metric.interval[1]:+.5f}), calibrated "
        f"{calibrated.difference:+.5f} ({calibrated.interval[0]:+.5f} to {calibrated.interval[1]:+.5f}) nats per token"
    )
