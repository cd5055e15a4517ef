"""Scores in memory against evaluations of checkpoints on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from builders import a_plan
from safetensors.torch import load_file

from planner.checkpoint import open_checkpoint
from planner.edits import combined, new_values, resolved, surroundings_of
from planner.errors import CheckpointError, SuiteInvalid
from planner.evaluation import Scorer, evaluate, load_suite
from planner.plan import Policy, decide
from planner.transaction import apply_plan

TINY = Path(__file__).parents[2] / "examples" / "tiny-model"


def values(folder: Path) -> dict[str, np.ndarray]:
    shards = [load_file(shard) for shard in folder.glob("*.safetensors")]
    return {name: tensor.float().numpy() for shard in shards for name, tensor in shard.items()}


def same(score, metric) -> None:
    """A score is what an evaluation found of the same metric."""
    assert score.raw.difference == pytest.approx(metric.difference, abs=2e-6)
    assert score.raw.interval == pytest.approx(metric.interval, abs=2e-6)
    assert score.raw.p_value == metric.p_value
    compared = score.calibrated.comparison
    assert compared.difference == pytest.approx(metric.calibrated.difference, abs=2e-6)
    assert compared.interval == pytest.approx(metric.calibrated.interval, abs=2e-6)
    assert compared.p_value == metric.calibrated.p_value
    assert score.calibrated.losses == pytest.approx((metric.calibrated.baseline, metric.calibrated.candidate), abs=2e-6)
    temperatures = metric.calibrated.temperatures
    assert score.calibrated.temperatures == pytest.approx((temperatures.baseline, temperatures.candidate), abs=1e-4)


def test_a_score_is_what_evaluate_finds_on_disk(models, write_suite, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(models.sharp[:20]))
    extra = (
        '[[metric]]\nname = "short"\nkind = "text_loss"\ntext = "text.jsonl"\nmax_tokens = 5\n'
        '[drift]\ntext = "other.json"\nmax_tokens = 9\n'
    )
    suite = load_suite(write_suite(models.documents, extra))
    scorer = Scorer(open_checkpoint(models.base), suite, seed=3)
    assert scorer.spent == 0
    for amount in (0.3, 0.05, 0.3):  # the third: nothing is left behind by the second
        found = evaluate(models.base, models.noisy(amount), suite, seed=3)
        score = scorer.score(values(models.noisy(amount)))
        assert list(score.metrics) == ["words", "short"]
        for metric in found.metrics:
            same(score.metrics[metric.name], metric)
        assert score.drift.tokens == found.drift.tokens
        assert score.drift.kl_mean == pytest.approx(found.drift.kl_mean, rel=1e-4)
        assert score.drift.kl_p99 == pytest.approx(found.drift.kl_p99, rel=1e-3)
        assert score.drift.top1_agreement == found.drift.top1_agreement
    assert scorer.spent == 3
    assert scorer.score({}, drift=False).drift is None
    assert scorer.score({}).metrics["words"].raw.difference == 0.0


def test_a_plan_in_memory_is_the_plan_on_disk(tmp_path):
    # The weights are bfloat16: what is scored has to be rounded as what is stored.
    plan = a_plan(
        TINY,
        {"target": {"roles": ["down_proj"]}, "operation": {"kind": "scale", "factor": 1.3}},
        {"target": {"roles": ["q_norm"], "layers": "1"}, "operation": {"kind": "shift", "offset": 0.05}},
    )
    checkpoint = open_checkpoint(TINY)
    around = surroundings_of(checkpoint, tmp_path)
    changes = new_values(combined([resolved(m, around) for m in plan.modifications], around), around)
    policy = Policy(largest_relative_change=10)
    plan = decide(plan, [m.id for m in plan.modifications], "approved", reviewer="tester", policy=policy)
    out = tmp_path / "out"
    apply_plan(plan, TINY, out=out, policy=policy, by="tester")
    stored = values(out)
    for name, array in changes.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, stored[name])
    lines = (TINY / "texts" / "stories.heldout.jsonl").read_text().splitlines()[:24]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    (tmp_path / "suite.toml").write_text(
        '[[metric]]\nname = "stories"\nkind = "text_loss"\ntext = "text.jsonl"\nmax_tokens = 48\n'
    )
    suite = load_suite(tmp_path / "suite.toml")
    found = evaluate(TINY, out, suite)
    score = Scorer(checkpoint, suite).score(changes)
    same(score.metrics["stories"], found.metrics[0])
    assert score.drift.kl_mean == pytest.approx(found.drift.kl_mean, rel=1e-3)
    assert abs(found.metrics[0].difference) > 1e-4


def test_documents_in_memory(models):
    scorer = Scorer(open_checkpoint(models.base), {"a": models.documents[:20], "b": models.sharp[:20]}, max_tokens=7)
    steps: list[int] = []
    score = scorer.score(values(models.noisy(0.3)), step=steps.append)
    assert list(score.metrics) == ["a", "b"]
    assert score.drift.text == "a"
    assert (
        sum(steps) == scorer.tokens == sum(min(7, len(d.split())) for d in (*models.documents[:20], *models.sharp[:20]))
    )
    only = Scorer(
        open_checkpoint(models.base), {"a": models.documents[:20], "b": models.sharp[:20]}, max_tokens=7, metrics=["b"]
    )
    assert only.score(values(models.noisy(0.3)), drift=False).metrics == {"b": score.metrics["b"]}
    with pytest.raises(SuiteInvalid, match="fewer than 2 different documents"):
        Scorer(open_checkpoint(models.base), {"a": ["w1 w2", "w1 w2"]})


def test_a_broken_change_has_no_numbers(models, write_suite):
    scorer = Scorer(open_checkpoint(models.base), load_suite(write_suite(models.documents)))
    score = scorer.score({"model.norm.weight": np.full(32, np.nan, np.float32)})
    metric = score.metrics["words"]
    assert (metric.raw, metric.calibrated, metric.nonfinite_documents) == (None, None, 80)
    assert score.drift.kl_mean is None
    assert scorer.score({}, drift=False).metrics["words"].raw.difference == 0.0


def test_a_broken_checkpoint_is_refused(models, write_suite):
    broken = open_checkpoint(models.filled(float("nan")))
    with pytest.raises(CheckpointError, match="not finite on 80 of 80 documents of 'words'"):
        Scorer(broken, load_suite(write_suite(models.documents)))


def test_what_cannot_be_scored_is_said(models, write_suite):
    scorer = Scorer(open_checkpoint(models.base), load_suite(write_suite(models.documents)))
    with pytest.raises(CheckpointError, match=r"no\.such\.weight is not in the loaded model") as caught:
        scorer.score({"no.such.weight": np.zeros(3, np.float32)})
    assert "evaluate" in caught.value.hint
    assert scorer.spent == 0


def test_stored_copies_of_a_tied_tensor_change_together(models, write_suite, tmp_path):
    import shutil

    from safetensors.torch import save_file

    folder = shutil.copytree(models.base, tmp_path / "tied")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    scorer = Scorer(open_checkpoint(folder), load_suite(write_suite(models.documents)))
    new = 1.3 * tensors["lm_head.weight"].numpy()
    with pytest.raises(CheckpointError, match="two stored copies of one tied tensor"):
        scorer.score({"lm_head.weight": new})
    both = scorer.score({"lm_head.weight": new, "model.embed_tokens.weight": new})
    assert abs(both.metrics["words"].raw.difference) > 0.01


def test_the_same_model_measured_again_differs_by_rounding(models, write_suite):
    scorer = Scorer(open_checkpoint(models.base), load_suite(write_suite(models.documents)))
    again, tokens = scorer.measured_again("words")
    first = scorer.losses("words")
    assert np.abs(again.nll / tokens - first.nll / tokens).max() < 1e-5
    assert not np.array_equal(again.nll, first.nll), "other batches round otherwise"
    assert math.isclose(tokens.sum(), scorer.tokens)
