"""Gates: the rules by which a candidate is accepted or refused."""

from __future__ import annotations

from collections.abc import Iterable

from planner.evaluation.report import Controls, DriftResult, GateResult, MetricResult, RandomPlans
from planner.evaluation.suite import Gate, Suite
from planner.evaluation.wording import broken, numbers_of

__all__ = ["DEFAULT_MARGIN", "ENOUGH_RANDOM_PLANS", "RANDOM_LEVEL", "judge"]

DEFAULT_MARGIN = 0.01
"""Nats per token; about 1 % of perplexity."""
RANDOM_LEVEL = 0.05
"""A candidate whose rank_p is above this has not shown that it is better than random plans."""
ENOUGH_RANDOM_PLANS = 19
"""The fewest random plans that can tell: with fewer, even the best rank leaves rank_p above `RANDOM_LEVEL`."""


def judge(
    suite: Suite, metrics: Iterable[MetricResult], drift: DriftResult, controls: Controls | None = None
) -> tuple[GateResult, ...]:
    """What each gate of the suite says, in order. What is not finite fails every gate on it.

    "improved" asks for the verdict, and on the metric of the controls also for a rank among the random plans that is
    unlikely by chance (rank_p <= 0.05), where at least 19 of them were measured.
    """
    found = {metric.name: metric for metric in metrics}
    results: list[GateResult] = []
    for gate in suite.gates:
        if gate.metric is None:
            passed, why = _max_drift(gate, drift)
        elif gate.rule == "improved":
            mine = controls is not None and controls.metric == gate.metric
            passed, why = _improved(found[gate.metric], controls.random if controls and mine else None)
        else:
            passed, why = _not_worse(gate, found[gate.metric])
        results.append(GateResult(name=gate.name, passed=passed, why=why))
    return tuple(results)


def _improved(metric: MetricResult, random: RandomPlans | None) -> tuple[bool, str]:
    if metric.difference is None or metric.calibrated is None:
        return False, broken(metric)
    passed = metric.verdict == "improved"
    why = f"the verdict is {metric.verdict!r}: {numbers_of(metric)}"
    if metric.verdict == "no detectable change" and metric.calibrated.mde:
        why += f"; on this text a difference below about {metric.calibrated.mde:.1g} would often go unseen"
    if random is None:
        return passed, why
    better = random.n - random.as_good
    why += f"; better than {better} of {random.n} random plans of the same strengths (p = {random.rank_p:.3g})"
    if random.n < ENOUGH_RANDOM_PLANS:
        return passed, f"{why}, which are too few to decide"
    if random.rank_p > RANDOM_LEVEL:
        return False, f"{why}, where p <= {RANDOM_LEVEL:g} is asked for"
    return passed, why


def _not_worse(gate: Gate, metric: MetricResult) -> tuple[bool, str]:
    if metric.interval is None or metric.calibrated is None:
        return False, broken(metric)
    # Both: a raw loss alone could stay level because a better temperature hides what was lost, and a calibrated loss
    # alone would pass a model whose confidence, as people will use it, is off.
    margin = DEFAULT_MARGIN if gate.margin is None else gate.margin
    highest = max(metric.interval[1], metric.calibrated.interval[1])
    relation = "within" if highest <= margin else "above"
    return (
        highest <= margin,
        f"the upper ends reach {highest:+.5f}, {relation} the margin {margin:g}: {numbers_of(metric)}",
    )


def _max_drift(gate: Gate, drift: DriftResult) -> tuple[bool, str]:
    assert gate.limit is not None  # load_suite demands it
    if drift.kl_mean is None:
        return False, f"the divergence is not finite on {drift.nonfinite_tokens} of {drift.tokens} tokens"
    passed = drift.kl_mean <= gate.limit
    return passed, (
        f"the mean KL divergence is {drift.kl_mean:.4g} nats per token, "
        f"{'within' if passed else 'above'} the limit {gate.limit:g}"
    )
