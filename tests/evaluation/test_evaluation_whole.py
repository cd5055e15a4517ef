from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from planner.errors import CheckpointError, ExtraMissing, SuiteInvalid
from planner.evaluation import DriftResult, Evaluation, Side, evaluate, judge, load_suite
from planner.evaluation.verdicts import metric_results

GATES = (
    '[[gate]]\nmetric = "words"\nrule = "improved"\n'
    '[[gate]]\nmetric = "words"\nrule = "not_worse"\n'
    '[[gate]]\nrule = "max_drift"\nlimit = 0.5\n'
)


def test_an_improvement(models, write_suite):
    suite = load_suite(write_suite(models.documents, GATES.replace("0.5", "5")))
    found = evaluate(models.noisy(0.3), models.base, suite)
    (metric,) = found.metrics
    assert metric.verdict == metric.raw_verdict == metric.calibrated.verdict == "improved"
    assert metric.difference == pytest.approx(metric.candidate - metric.baseline)
    assert metric.interval[0] < metric.difference < metric.interval[1] < 0
    assert metric.calibrated.difference == pytest.approx(metric.calibrated.candidate - metric.calibrated.baseline)
    assert metric.p_value == metric.p_holm < 0.001
    assert metric.share_better > 0.7
    assert metric.calibrated.temperatures.candidate == pytest.approx(1.0, abs=0.15)
    assert [gate.passed for gate in found.gates] == [True, True, True]
    assert found.accepted


def test_the_same_the_other_way_round_is_worse(models, write_suite):
    suite = load_suite(write_suite(models.documents, GATES))
    found = evaluate(models.base, models.noisy(0.3), suite)
    (metric,) = found.metrics
    assert metric.verdict == "worse"
    assert metric.interval[0] > 0
    assert metric.share_better < 0.3
    assert [gate.passed for gate in found.gates] == [False, False, found.drift.kl_mean <= 0.5]
    assert "the verdict is 'worse'" in found.gates[0].why
    assert "above the margin 0.01" in found.gates[1].why
    assert not found.accepted


@pytest.mark.parametrize("factor", [0.8, 1.25, 1.6])
def test_a_change_of_temperature_is_no_improvement(models, write_suite, factor):
    # The texts were drawn at T = 1/2, so a sharper model predicts them better without knowing more.
    suite = load_suite(write_suite(models.sharp, GATES))
    (metric,) = evaluate(models.base, models.scaled(factor), suite).metrics
    assert abs(metric.calibrated.difference) < 1e-4
    assert metric.calibrated.verdict == "no detectable change"
    assert metric.calibrated.temperatures.candidate == pytest.approx(
        factor * metric.calibrated.temperatures.baseline, rel=1e-3
    )
    assert metric.verdict == metric.raw_verdict == "worse" if factor < 1 else metric.verdict == "temperature only"
    assert (metric.raw_verdict == "improved") == (factor > 1)
    assert metric.calibrated.at_limit is False


def test_temperature_only_does_not_pass_the_gate(models, write_suite):
    suite = load_suite(write_suite(models.sharp, GATES))
    found = evaluate(models.base, models.scaled(1.25), suite)
    assert [gate.passed for gate in found.gates] == [False, True, True]
    assert "temperature only" in found.gates[0].why
    assert "go unseen" not in found.gates[0].why, "it was seen"


def test_a_model_against_itself(models, write_suite):
    found = evaluate(models.base, models.base, load_suite(write_suite(models.documents)))
    (metric,) = found.metrics
    assert (metric.difference, metric.interval, metric.p_value) == (0.0, (0.0, 0.0), 1.0)
    assert metric.verdict == "no detectable change"
    assert (found.drift.kl_mean, found.drift.kl_p99, found.drift.top1_agreement) == (0.0, 0.0, 1.0)
    assert found.accepted
    assert found.gates == ()


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_a_broken_candidate_is_refused_by_every_gate(models, write_suite, value):
    suite = load_suite(write_suite(models.documents, GATES))
    found = evaluate(models.base, models.filled(value), suite)
    (metric,) = found.metrics
    assert (metric.candidate, metric.difference, metric.interval, metric.p_value) == (None, None, None, None)
    assert metric.calibrated is None
    assert metric.verdict == "worse"
    assert metric.nonfinite_documents == metric.n == 80
    assert found.drift.kl_mean is None
    assert [gate.passed for gate in found.gates] == [False, False, False]
    assert "not finite on 80 of 80 documents" in found.gates[0].why
    assert not found.accepted
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_a_broken_baseline_is_an_error(models, write_suite):
    suite = load_suite(write_suite(models.documents))
    with pytest.raises(CheckpointError, match="baseline's loss is not finite on 80 of 80"):
        evaluate(models.filled(float("nan")), models.base, suite)


def test_the_document_is_what_the_contract_says(models, write_suite):
    suite = load_suite(write_suite(models.documents, GATES))
    side = Side(name="org/model@main", fingerprint="blake3:0")
    found = evaluate(models.base, models.noisy(0.3), suite, seed=5, baseline_side=side)
    written = json.loads(found.model_dump_json())
    assert {"metrics", "drift", "gates", "accepted"} < set(written)
    assert {"name", "n", "baseline", "candidate", "difference", "interval", "p_value", "test", "better", "verdict",
            "calibrated"} < set(written["metrics"][0])  # fmt: skip
    assert {"difference", "interval", "p_value", "temperatures"} < set(written["metrics"][0]["calibrated"])
    assert set(written["metrics"][0]["calibrated"]["temperatures"]) == {"baseline", "candidate"}
    assert {"kl_mean", "kl_p99", "top1_agreement"} < set(written["drift"])
    assert set(written["gates"][0]) == {"name", "passed", "why"}
    assert written["schema"] == "planner/evaluation@1"
    assert written["baseline"] == {"name": "org/model@main", "fingerprint": "blake3:0"}
    assert written["candidate"]["name"].endswith("noisy 0.3")
    assert written["seed"] == 5
    assert written["suite"]["texts"] == [{"name": "text.jsonl", "digest": suite.texts[0].digest, "documents": 80}]
    assert set(written["versions"]) == {"planner", "numpy", "torch", "transformers"}
    assert written["metrics"][0]["tokens"] == sum(min(20, len(text.split())) for text in models.documents)
    assert Evaluation.model_validate(written) == found
    undescribed = [
        (name, field) for name, kind in Evaluation.model_json_schema()["$defs"].items()
        for field, about in kind["properties"].items() if "description" not in about
    ]  # fmt: skip
    assert undescribed == []


def test_seed_moves_only_the_resampling(models, write_suite):
    suite = load_suite(write_suite(models.documents))
    runs = [evaluate(models.base, models.noisy(0.02), suite, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (run.metrics[0] for run in runs)
    assert again == first
    assert other.difference == first.difference
    assert other.interval != first.interval
    assert other.interval == pytest.approx(first.interval, rel=0.2)


def test_several_metrics_are_corrected_and_texts_measured_once(models, write_suite, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(models.sharp[:20]))
    extra = (
        '[[metric]]\nname = "again"\nkind = "text_loss"\ntext = "text.jsonl"\nmax_tokens = 20\n'
        '[[metric]]\nname = "short"\nkind = "text_loss"\ntext = "text.jsonl"\nmax_tokens = 5\n'
        '[drift]\ntext = "other.json"\nmax_tokens = 3\n'
    )
    suite = load_suite(write_suite(models.documents, extra))
    calls: list[tuple[int, int]] = []
    found = evaluate(models.base, models.noisy(0.02), suite, progress=lambda *call: calls.append(call))
    words, again, short = found.metrics
    assert words.tokens == again.tokens > short.tokens == 80 * 5
    assert found.drift.tokens == 20 * 3
    assert calls[0] == (0, words.tokens + short.tokens + 60)
    assert calls[-1] == (calls[0][1], calls[0][1])
    assert sorted(calls) == calls
    order = sorted(found.metrics, key=lambda metric: metric.p_value)
    assert order[0].p_holm == pytest.approx(min(1, 3 * order[0].p_value))
    assert "Holm over 3 metrics" in found.correction
    assert found.metrics[0].difference == found.metrics[1].difference


def test_holm_decides_the_verdict():
    from planner.evaluation.temperature import FIRST_NODE, NODE_STEP, NODES, Curves
    from planner.evaluation.text_loss import Losses, Measurement

    nodes = FIRST_NODE + NODE_STEP * np.arange(NODES)
    documents = [str(number) for number in range(12)]

    def losses(values: np.ndarray) -> Losses:
        return Losses(values, Curves(1.0, values[:, None] * (1 + (nodes - 1) ** 2)))

    rng = np.random.default_rng(2)
    base = np.full(12, 100.0)
    found = Measurement(np.full(12, 50.0), losses(base), losses(base - 1 + 1.3 * rng.standard_normal(12)), None)
    (alone,) = metric_results(["a"], [documents], [found], seed=0)
    assert 0.01 < alone.p_value < 0.05
    assert alone.verdict == "improved"
    many = metric_results(list("abcde"), [documents] * 5, [found] * 5, seed=0)
    assert many[0].p_value == alone.p_value
    assert many[0].p_holm == pytest.approx(min(1.0, 5 * alone.p_value))
    assert many[0].verdict == "no detectable change"

    # A temperature at the limit: the calibrated difference may be an artefact of where the search stopped.
    falling = Losses(base, Curves(1.0, base[:, None] * (3 - nodes)))
    (limit,) = metric_results(
        ["a"], [documents], [Measurement(found.tokens, falling, losses(base - 5 - rng.random(12)), None)], seed=0
    )
    assert limit.calibrated.at_limit
    assert limit.verdict != "improved"

    # Of one sign on every document, but below what the measurement resolves.
    (tiny,) = metric_results(
        ["a"], [documents], [Measurement(found.tokens, losses(base), losses(base - 0.004), None)], seed=0
    )
    assert tiny.p_value < 0.01
    assert tiny.verdict == tiny.raw_verdict == "no detectable change"


def test_not_worse_looks_at_the_upper_ends_of_both_intervals(models, write_suite):
    suite = load_suite(write_suite(models.documents, '[[gate]]\nmetric = "words"\nrule = "not_worse"\nmargin = 0.05\n'))
    found = evaluate(models.base, models.base, suite)
    (metric,) = found.metrics
    for raw, calibrated, passed in ((0.05, 0.05, True), (0.051, 0.0, False), (0.0, 0.051, False), (-0.1, -0.1, True)):
        changed = metric.model_copy(
            update={
                "interval": (-0.2, raw),
                "calibrated": metric.calibrated.model_copy(update={"interval": (-0.2, calibrated)}),
            }
        )
        (result,) = judge(suite, [changed], found.drift)
        assert (result.name, result.passed) == ("words not_worse", passed), result.why


def test_max_drift_is_a_limit_on_the_mean(models, write_suite):
    suite = load_suite(write_suite(models.documents, '[[gate]]\nrule = "max_drift"\nlimit = 0.1\n'))
    drift = DriftResult(text="t", tokens=9, kl_mean=0.1, kl_p99=7.0, top1_agreement=0.5, nonfinite_tokens=0)
    assert judge(suite, [], drift)[0].passed
    (over,) = judge(suite, [], drift.model_copy(update={"kl_mean": 0.1001}))
    assert (over.name, over.passed) == ("max_drift", False)
    assert "above the limit 0.1" in over.why


def test_documents_without_a_token_to_predict(models, write_suite, tmp_path):
    import shutil

    folder = shutil.copytree(models.base, tmp_path / "without bos")
    models.write_tokenizer(folder, bos=False)
    suite = load_suite(write_suite(("w1 w2", "w3", "w4 w5 w6")))
    with pytest.raises(SuiteInvalid, match="1 documents have no token to predict, such as document 2"):
        evaluate(folder, folder, suite)
    assert evaluate(models.base, models.base, suite).metrics[0].tokens == 6


def test_silent_offline_and_without_traces(models, write_suite, capfd, monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    from transformers.utils import logging

    logging.enable_progress_bar()
    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    suite = load_suite(write_suite(tuple(text * 9 for text in models.documents), max_tokens=None))
    evaluate(models.base, models.base, suite)
    assert capfd.readouterr() == ("", "")
    assert "HF_HUB_OFFLINE" not in os.environ
    assert (torch.get_num_threads(), logging.get_verbosity()) == (threads, verbosity)
    assert logging.is_progress_bar_enabled()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(CheckpointError):
        evaluate(models.base, models.base.parent / "none", suite)
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    logging.disable_progress_bar()


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_without_the_extra(models, write_suite, monkeypatch, module):
    suite = load_suite(write_suite(models.documents))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraMissing, match=module) as caught:
        evaluate(models.base, models.base, suite)
    assert "pip install" in caught.value.hint


def test_importing_the_package_imports_no_torch():
    code = "import sys, planner.evaluation; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
