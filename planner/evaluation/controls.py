"""Controls: what the difference of a metric is compared with beside the baseline, before anybody believes it.

A small change of many weights nearly always changes the loss of a text by more than chance would, and out of domain
often for the better: of random plans that scale weights by 5 %, nearly every second one is "significantly better" than
the original there. So significance alone says little about a plan. Three comparisons say more: the candidate among
random plans of the same strengths, the gain of a logit scale alone, and the baseline against itself.

They are made for one metric: the first that a gate asks to be improved, else the first of the suite. Each random plan
costs one pass over its text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from planner.checkpoint import Checkpoint
from planner.edits import Unresolved, surroundings_of
from planner.effects import edits_of
from planner.evaluation.jobs import job_of
from planner.evaluation.pair import Pair
from planner.evaluation.rearranging import Method, RandomPlan, Rearrangement, Unarrangeable
from planner.evaluation.report import Controls, MetricResult, NoiseFloor, RandomPlans, Spread, TemperatureAlone
from planner.evaluation.scoring import MetricScore, Scorer, Step, stored_copies
from planner.evaluation.statistics import Comparison
from planner.evaluation.suite import Metric, Suite
from planner.evaluation.temperature import assign_folds, cross_fit
from planner.evaluation.text_loss import Measurement
from planner.evaluation.verdicts import RESOLUTION, verdict_of
from planner.inference import parameters_by_tensor
from planner.plan import Modification

__all__ = ["Planned", "Wanted", "controls_of", "decisive_metric", "planned", "temperature_alone"]

_ROUNDING = 1e-9
"""Nats per token. Differences that spread less than this are equal but for rounding, and have no z."""


@dataclass(frozen=True)
class Wanted:
    """How many random plans, and which plan they are to resemble."""

    count: int = 39
    """Random plans; with 39 the smallest rank_p is 0.025. 0 for no controls that cost a pass."""
    modifications: Sequence[Modification] | None = None
    """What was done to the baseline to make the candidate; None where that is not known."""
    folder: Path = Path()
    """Where relative paths in the modifications begin."""
    fitted: str | None = None
    """Id of the evidence that they were computed from; None where they were not."""
    unknown: str = "it is not known by which plan the candidate was made from the baseline"
    """Why `modifications` is None."""


def decisive_metric(suite: Suite) -> Metric:
    """The metric that controls are made for."""
    named = next((gate.metric for gate in suite.gates if gate.rule == "improved"), None)
    return next((metric for metric in suite.metrics if metric.name == named), suite.metrics[0])


def temperature_alone(found: Measurement, documents: Sequence[str], metric: MetricResult) -> TemperatureAlone:
    """What a logit scale alone gains for the baseline, from losses that are measured already."""
    side = found.baseline
    calibrated = cross_fit(side.curves, assign_folds(documents))
    share = None
    if metric.difference is not None and metric.calibrated is not None and metric.difference <= -RESOLUTION:
        share = 1.0 - metric.calibrated.difference / metric.difference
    return TemperatureAlone(
        difference=float((calibrated - side.nll).sum() / found.tokens.sum()), candidate=metric.difference, share=share
    )


@dataclass(frozen=True, eq=False)
class Planned:
    """Random plans that are ready to be measured."""

    plans: Sequence[RandomPlan] = ()
    """All different."""
    methods: Mapping[Method, int] = field(default_factory=dict)
    """Tensors of the candidate's plan by how their change is rearranged."""
    none: str | None = None
    """Why there are no plans; None where there are."""


def planned(checkpoint: Checkpoint, pair: Pair, wanted: Wanted, *, seed: int) -> Planned:
    """The random plans for an evaluation whose baseline is `checkpoint`. Nothing is measured yet."""
    if not wanted.count:
        return Planned(none="no controls were asked for")
    if wanted.modifications is None:
        return Planned(none=wanted.unknown)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    parameters = parameters_by_tensor(pair.baseline, shapes)
    around = surroundings_of(checkpoint, wanted.folder)
    try:
        rearrangement = Rearrangement(
            edits_of(wanted.modifications, around),
            around,
            changeable=frozenset(parameters),
            copies=stored_copies(parameters),
        )
    except Unresolved as error:
        return Planned(none=f"the plan cannot be read again: {error}")
    except Unarrangeable as error:
        return Planned(none=str(error))
    plans = rearrangement.draw(wanted.count, seed)
    if not plans:
        return Planned(none="no plan of the same strengths differs from the candidate's")
    return Planned(plans, rearrangement.methods)


def controls_of(
    checkpoint: Checkpoint,
    suite: Suite,
    pair: Pair,
    found: Measurement,
    result: MetricResult,
    ready: Planned,
    wanted: Wanted,
    *,
    seed: int,
    step: Step | None = None,
) -> Controls:
    """Measure the controls of the decisive metric, whose pair of losses is `found` and whose result is `result`.

    `step` is told the tokens that are done: those of the metric once for each random plan, and once more.
    """
    metric = decisive_metric(suite)
    temperature = temperature_alone(found, suite.documents(metric.text), result)
    if not wanted.count:
        return Controls(
            metric=metric.name, temperature=temperature, random=None, no_random=ready.none, noise_floor=None
        )
    measured = {job_of(metric): found.baseline}
    scorer = Scorer(checkpoint, suite, metrics=[metric.name], seed=seed, pair=pair, measured=measured)
    again, tokens = scorer.measured_again(metric.name, step=step)
    random, none = None, ready.none
    if none is None and result.calibrated is None:
        none = "the candidate's loss is not finite"
    elif none is None:
        scores = [scorer.score(plan, drift=False, step=step).metrics[metric.name] for plan in ready.plans]
        random = _among(result, scores, ready.methods, wanted.count)
    return Controls(
        metric=metric.name,
        temperature=temperature,
        random=random,
        no_random=none,
        noise_floor=NoiseFloor(
            document=float((np.abs(again.nll - found.baseline.nll) / tokens).max()),
            mean=float(abs((again.nll - found.baseline.nll).sum()) / tokens.sum()),
        ),
    )


def _among(
    result: MetricResult, scores: Sequence[MetricScore], methods: Mapping[Method, int], asked: int
) -> RandomPlans:
    assert result.calibrated is not None, "only a finite candidate is ranked"
    mine = result.calibrated.difference
    calibrated = [score.calibrated.comparison for score in scores if score.calibrated is not None]
    raw = [score.raw for score in scores if score.raw is not None]
    as_good = sum(one.difference <= mine for one in calibrated)
    spread = _spread(calibrated)
    return RandomPlans(
        n=len(scores),
        asked=asked,
        nonfinite=len(scores) - len(raw),
        calibrated=spread,
        raw=_spread(raw),
        as_good=as_good,
        rank=1 + as_good,
        rank_p=(1 + as_good) / (len(scores) + 1),
        z=(mine - spread.mean) / spread.sd if spread and spread.sd and spread.sd > _ROUNDING else None,
        improved_raw=sum(verdict_of(one, one.p_value) == "improved" for one in raw),
        improved_calibrated=sum(verdict_of(one, one.p_value) == "improved" for one in calibrated),
        methods=dict(methods),
    )


def _spread(compared: Sequence[Comparison]) -> Spread | None:
    if not compared:
        return None
    differences = np.array([one.difference for one in compared])
    return Spread(
        mean=float(differences.mean()),
        sd=float(differences.std(ddof=1)) if len(differences) > 1 else None,
        min=float(differences.min()),
        max=float(differences.max()),
    )
