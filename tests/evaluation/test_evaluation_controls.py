"""The candidate among random plans, beside a logit scale alone, and above the noise of the measurement."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_plan
from safetensors.torch import load_file, save_file

from planner.checkpoint import open_checkpoint
from planner.evaluation import Evaluation, Scorer, Wanted, evaluate, judge, load_suite
from planner.evaluation.controls import planned
from planner.evaluation.pair import load_itself
from planner.plan import Policy, decide
from planner.transaction import apply_plan

GATES = '[[gate]]\nmetric = "words"\nrule = "improved"\n'
RESTORED = {
    "target": {"roles": ["v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "layers": "1"},
    "operation": {"kind": "scale", "factor": 0.625},
}


@pytest.fixture(scope="module")
def inflated(models, tmp_path_factory) -> Path:
    """The model that wrote the documents, with five matrices of its second layer 1.6 times too large."""
    folder = shutil.copytree(models.base, tmp_path_factory.mktemp("inflated") / "model")
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.startswith("model.layers.1.") and name.split(".")[-2] in RESTORED["target"]["roles"]:
            tensors[name] *= 1.6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def made(model: Path, out: Path, *modifications: dict) -> tuple[Path, Wanted]:
    """The checkpoint that a plan makes, and how its controls are asked for."""
    policy = Policy(largest_relative_change=1e9, largest_total_change=1e9)
    plan = a_plan(model, *modifications)
    plan = decide(plan, [m.id for m in plan.modifications], "approved", reviewer="tester", policy=policy)
    apply_plan(plan, model, out=out, policy=policy, by="tester")
    return out, Wanted(count=19, modifications=plan.modifications)


def test_a_plan_that_restores_the_model_beats_random_plans(models, inflated, write_suite, tmp_path):
    suite = load_suite(write_suite(models.documents, GATES))
    candidate, wanted = made(inflated, tmp_path / "out", RESTORED)
    calls: list[tuple[int, int]] = []
    found = evaluate(inflated, candidate, suite, controls=wanted, progress=lambda *call: calls.append(call))
    (metric,), random = found.metrics, found.controls.random
    assert metric.verdict == "improved"
    assert found.controls.metric == "words"
    assert (random.n, random.asked, random.nonfinite) == (19, 19, 0)
    assert (random.rank, random.as_good, random.rank_p) == (1, 0, pytest.approx(0.05))
    assert random.methods == {"factor": 5}
    assert metric.calibrated.difference < random.calibrated.min
    assert random.z < -2
    assert found.gates[0].passed
    assert "better than 19 of 19 random plans of the same strengths (p = 0.05)" in found.gates[0].why
    assert found.controls.no_random is None
    # Once for the pair (its drift is on the same text), once more for the noise, once for each random plan.
    assert calls[0] == (0, 21 * metric.tokens)
    assert calls[-1] == (21 * metric.tokens, 21 * metric.tokens)
    assert Evaluation.model_validate_json(found.model_dump_json()) == found
    # The numbers are those of the random plans, measured one by one.
    checkpoint = open_checkpoint(inflated)
    plans = planned(checkpoint, load_itself(inflated), wanted, seed=0).plans
    scorer = Scorer(checkpoint, suite)
    scores = [scorer.score(plan, drift=False).metrics["words"] for plan in plans]
    calibrated = np.array([score.calibrated.comparison.difference for score in scores])
    raw = np.array([score.raw.difference for score in scores])
    for spread, values in ((random.calibrated, calibrated), (random.raw, raw)):
        assert (spread.mean, spread.sd, spread.min, spread.max) == pytest.approx(
            (values.mean(), values.std(ddof=1), values.min(), values.max()), abs=1e-6
        )
    assert random.z == pytest.approx(
        (metric.calibrated.difference - calibrated.mean()) / calibrated.std(ddof=1), rel=1e-3
    )
    assert random.improved_raw == sum(s.raw.p_value < 0.05 and s.raw.interval[1] < 0 for s in scores)
    # Another candidate, one of the random plans itself, is "significantly" what it is, and no better than they are.
    assert random.improved_raw + sum(s.raw.p_value < 0.05 and s.raw.interval[0] > 0 for s in scores) > 9


def test_an_improvement_that_random_plans_reach_as_well_is_refused(models, inflated, write_suite, tmp_path):
    suite = load_suite(write_suite(models.documents, GATES))
    candidate, wanted = made(inflated, tmp_path / "out", RESTORED)
    found = evaluate(inflated, candidate, suite, controls=replace(wanted, count=3))
    assert found.accepted
    assert "too few to decide" in found.gates[0].why
    random = found.controls.random
    for n, as_good, passed in ((19, 0, True), (19, 1, False), (39, 1, True), (39, 2, False), (18, 18, True)):
        among = random.model_copy(update={"n": n, "as_good": as_good, "rank_p": (1 + as_good) / (n + 1)})
        controls = found.controls.model_copy(update={"random": among})
        (gate,) = judge(suite, found.metrics, found.drift, controls)
        assert gate.passed is passed, gate.why
    elsewhere = found.controls.model_copy(
        update={"metric": "other", "random": random.model_copy(update={"n": 39, "as_good": 39, "rank_p": 1.0})}
    )
    assert judge(suite, found.metrics, found.drift, elsewhere)[0].passed, "they say nothing of another metric"


def test_temperature_alone_and_the_noise_floor(models, write_suite):
    # The documents were drawn at T = 1/2: a sharper model predicts them better without knowing more.
    suite = load_suite(write_suite(models.sharp))
    found = evaluate(models.base, models.scaled(1.25), suite, controls=Wanted(count=2))
    (metric,), controls = found.metrics, found.controls
    alone = controls.temperature
    assert alone.difference == pytest.approx(metric.calibrated.baseline - metric.baseline)
    assert alone.difference < alone.candidate == metric.difference < 0
    assert alone.share == pytest.approx(1.0, abs=0.01)
    assert controls.random is None
    assert controls.no_random == "it is not known by which plan the candidate was made from the baseline"
    assert 0 < controls.noise_floor.document < 1e-5
    assert controls.noise_floor.mean <= controls.noise_floor.document


def test_without_controls_only_what_is_free_is_reported(models, write_suite):
    found = evaluate(models.base, models.noisy(0.3), load_suite(write_suite(models.documents)))
    assert found.controls.temperature.share is None, "there is no gain to explain"
    assert found.controls.random is found.controls.noise_floor is None
    assert found.controls.no_random == "no controls were asked for"


def test_a_broken_candidate_is_not_ranked(models, write_suite, tmp_path):
    wanted = Wanted(count=19, modifications=a_plan(models.base, RESTORED).modifications)
    found = evaluate(
        models.base, models.filled(float("nan")), load_suite(write_suite(models.documents)), controls=wanted
    )
    assert found.controls.no_random == "the candidate's loss is not finite"
    assert found.controls.temperature.candidate is None
    assert found.controls.noise_floor is not None


def test_random_plans_that_break_the_model_count_as_worse(models, write_suite, tmp_path):
    # The plan leaves logits of nothing; where both factors are inverted they overflow.
    candidate, wanted = made(
        models.base,
        tmp_path / "out",
        {
            "target": {"tensors": ["model.norm.weight", "lm_head.weight"]},
            "operation": {"kind": "scale", "factor": 1e-20},
        },
    )
    suite = load_suite(write_suite(models.documents))
    random = evaluate(models.base, candidate, suite, controls=wanted).controls.random
    assert (random.n, random.asked) == (3, 19), "two signs for each of two tensors, less the plan itself"
    assert random.nonfinite == 1
    assert (random.as_good, random.rank_p) == (2, 0.75), "the other two only undo each other"


def test_the_metric_of_the_controls_is_the_one_that_has_to_improve(models, write_suite):
    extra = (
        '[[metric]]\nname = "short"\nkind = "text_loss"\ntext = "text.jsonl"\nmax_tokens = 5\n'
        '[[gate]]\nmetric = "words"\nrule = "not_worse"\n[[gate]]\nmetric = "short"\nrule = "improved"\n'
    )
    suite = load_suite(write_suite(models.documents, extra))
    assert evaluate(models.base, models.base, suite).controls.metric == "short"
