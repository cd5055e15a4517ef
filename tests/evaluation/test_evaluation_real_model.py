"""Figures of a real trained model, where it is present."""

from __future__ import annotations

import json

import pytest
import torch

from planner.evaluation import evaluate, load_suite
from planner.evaluation.pair import load_pair, tokenize
from planner.evaluation.text_loss import measure


@pytest.fixture
def real_suite(assets, tmp_path):
    def write(text: str, count: int):
        documents = json.loads((assets / "texts" / f"{text}_1000.json").read_text())[-count:]
        (tmp_path / "text.json").write_text(json.dumps(documents))
        (tmp_path / "suite.toml").write_text(
            '[[metric]]\nname = "m"\nkind = "text_loss"\ntext = "text.json"\nmax_tokens = 192\n'
        )
        return load_suite(tmp_path / "suite.toml")

    return write


def test_losses_of_the_real_model(assets, real_suite):
    suite = real_suite("wikitext", 60)
    found = evaluate(assets / "stories260k", assets / "stories260k-bf16", suite)
    (metric,) = found.metrics
    # 4.794 on 300 documents; the standard deviation over documents is about 0.35.
    assert metric.baseline == pytest.approx(4.794, abs=0.12)
    # Out of domain the model is far too sure of itself.
    assert 1.7 < metric.calibrated.temperatures.baseline < 2.6
    assert metric.calibrated.baseline < metric.baseline - 0.6
    assert abs(metric.difference) < 0.01
    assert found.drift.kl_mean < 0.005


def test_documents_of_the_real_model_one_at_a_time(assets, real_suite):
    pair = load_pair(assets / "stories260k", assets / "stories260k-untied")
    ids = tokenize(pair, real_suite("tinystories", 12).texts[0].documents, 192)
    assert all(document[0] == 1 and document[1] != 1 and len(document) == 193 for document in ids)
    found = measure(pair, ids, drift=True)
    with torch.inference_mode():
        for place, document in enumerate(ids):
            logits = pair.baseline(torch.tensor([document])).logits[0, :-1]
            direct = torch.nn.functional.cross_entropy(logits, torch.tensor(document[1:]), reduction="sum").item()
            assert found.baseline.nll[place] == pytest.approx(direct, abs=1e-3)
    assert 1.1 < found.baseline.nll.sum() / found.tokens.sum() < 1.9
    assert found.drift.kl.mean() < 1e-6
