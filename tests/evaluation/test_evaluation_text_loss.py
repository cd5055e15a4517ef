from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from planner.errors import CheckpointError
from planner.evaluation import text_loss
from planner.evaluation.pair import Pair, load_pair, tokenize
from planner.evaluation.temperature import FIRST_NODE, NODE_STEP, NODES
from planner.evaluation.text_loss import measure


@pytest.fixture(scope="module")
def pair(models) -> Pair:
    return load_pair(models.base, models.noisy(0.3))


@pytest.fixture(scope="module")
def ids(pair, models) -> list[list[int]]:
    return tokenize(pair, models.documents[:40], 20)


def one_by_one(model, documents, inverse_temperature=1.0) -> np.ndarray:
    """Per-document losses by torch's own cross entropy, without batches, padding or masks."""
    return curve(model, documents, [inverse_temperature])[:, 0]


def curve(model, documents, inverse_temperatures) -> np.ndarray:
    """The same at several inverse temperatures, [documents, temperatures]."""
    found = []
    with torch.inference_mode():
        for document in documents:
            logits, target = model(torch.tensor([document])).logits[0, :-1].double(), torch.tensor(document[1:])
            found.append(
                [
                    torch.nn.functional.cross_entropy(logits * inverse_temperature, target, reduction="sum").item()
                    for inverse_temperature in inverse_temperatures
                ]
            )
    return np.array(found)


def test_tokens_are_cut_after_one_bos(pair, models):
    first = models.documents[0].split()
    for text in (models.documents[0], "<s> " + models.documents[0]):
        (found,) = tokenize(pair, [text], 7)
        assert found == [1] + [int(word[1:]) + 3 for word in first[:7]]
    (whole,) = tokenize(pair, [" ".join(first * 20)], None)
    assert len(whole) == pair.context == 64
    assert tokenize(pair, [" ".join(first * 20)], 1000) == [whole]


def test_bos_is_not_doubled_by_a_tokenizer_that_insists(pair):
    class Insisting:
        bos_token_id = 1

        def __call__(self, documents, add_special_tokens):
            return {"input_ids": [[1, 5, 6, 7] for _ in documents]}

    insisting = Pair(None, None, (Insisting(), Insisting()), 64, 64)
    assert tokenize(insisting, ["x"], 2) == [[1, 5, 6]]


def test_losses_equal_cross_entropy_one_document_at_a_time(pair, ids):
    found = measure(pair, ids, drift=False)
    assert found.tokens.tolist() == [len(document) - 1 for document in ids]
    assert len(set(found.tokens)) > 5
    for model, losses in ((pair.baseline, found.baseline), (pair.candidate, found.candidate)):
        assert losses.nll == pytest.approx(one_by_one(model, ids), abs=1e-4)
    assert np.abs(found.baseline.nll - found.candidate.nll).max() > 0.1
    assert found.drift is None


def test_curves_equal_cross_entropy_of_scaled_logits(pair, ids):
    found = measure(pair, ids[:6], drift=False)
    for model, losses in ((pair.baseline, found.baseline), (pair.candidate, found.candidate)):
        nodes = losses.curves.centre * (FIRST_NODE + NODE_STEP * np.arange(NODES))
        assert losses.curves.values == pytest.approx(curve(model, ids[:6], nodes), abs=1e-4)
        assert losses.curves.at(1.03) / found.tokens == pytest.approx(
            one_by_one(model, ids[:6], 1.03) / found.tokens, abs=1e-4
        )


@pytest.mark.parametrize("factor", [0.02, 0.25, 8.0])
def test_curves_follow_the_scale_of_the_logits(models, ids, factor):
    scaled = load_pair(models.base, models.scaled(factor))
    found = measure(scaled, ids, drift=False)
    assert found.candidate.curves.centre * factor == pytest.approx(found.baseline.curves.centre, rel=0.5)


@pytest.mark.parametrize(("batch", "chunk"), [(1, 64), (7, 1000), (50, 64 * 13), (4096, 2**18)])
def test_batches_and_chunks_do_not_show(pair, ids, monkeypatch, batch, chunk):
    # A batch of fewer tokens than a document makes the document run in pieces, continued from the cache.
    ids = ids[:12]
    whole = measure(pair, ids, drift=True)
    monkeypatch.setattr(text_loss, "_BATCH_TOKENS", batch)
    monkeypatch.setattr(text_loss, "_CHUNK_ELEMENTS", chunk)
    steps: list[int] = []
    found = measure(pair, ids, drift=True, step=steps.append)
    assert sum(steps) == whole.tokens.sum()
    for one, other in ((found.baseline, whole.baseline), (found.candidate, whole.candidate)):
        assert one.nll / whole.tokens == pytest.approx(other.nll / whole.tokens, abs=1e-5)
        assert one.curves.values == pytest.approx(other.curves.values, abs=2e-4)
    assert np.sort(found.drift.kl) == pytest.approx(np.sort(whole.drift.kl), abs=1e-5)
    assert found.drift.same_top == whole.drift.same_top


def test_recurrent_models_are_never_cut(pair, ids, monkeypatch):
    monkeypatch.setattr(text_loss, "_BATCH_TOKENS", 5)
    monkeypatch.setattr(type(pair.baseline), "_is_stateful", True)
    monkeypatch.setattr(torch, "split", lambda tensor, width, dim=0: [tensor] if dim == 0 else pytest.fail("cut"))
    assert measure(pair, ids[:3], drift=False).baseline.nll == pytest.approx(
        one_by_one(pair.baseline, ids[:3]), abs=1e-4
    )


def test_models_without_a_cache_say_so(pair, ids, monkeypatch):
    monkeypatch.setattr(text_loss, "_BATCH_TOKENS", 5)
    forward = type(pair.baseline).forward

    def cacheless(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.past_key_values = None
        return output

    monkeypatch.setattr(type(pair.baseline), "forward", cacheless)
    with pytest.raises(CheckpointError, match="in pieces of 5"):
        measure(pair, ids, drift=False)


def test_drift_equals_the_definition(pair, ids):
    found = measure(pair, ids, drift=True).drift
    kl, same = [], 0
    with torch.inference_mode():
        for document in ids:
            p, q = (
                model(torch.tensor([document])).logits[0, :-1].double().log_softmax(-1)
                for model in (pair.baseline, pair.candidate)
            )
            kl += (p.exp() * (p - q)).sum(-1).tolist()
            same += int((p.argmax(-1) == q.argmax(-1)).sum())
    assert np.sort(found.kl) == pytest.approx(np.sort(kl), abs=1e-5)
    assert found.kl.mean() > 0.01
    assert found.same_top == same < len(kl)


def test_a_model_has_not_drifted_from_itself(models, ids):
    found = measure(load_pair(models.base, models.base), ids, drift=True)
    assert np.all(found.drift.kl == 0)
    assert found.drift.same_top == found.tokens.sum()
    assert np.all(found.baseline.nll == found.candidate.nll)


def test_small_divergences_are_not_negative():
    p = torch.randn(200, 5000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    q = (p + 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    exact_p, exact_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    direct = (exact_p.exp() * (exact_p - exact_q)).sum(-1)
    assert text_loss._divergence(p, q) == pytest.approx(direct.numpy(), abs=1e-7)


def test_broken_output_is_a_measurement(models, ids):
    broken = load_pair(models.base, models.filled(float("nan")))
    found = measure(broken, ids, drift=True)
    assert np.all(np.isnan(found.candidate.nll))
    assert np.all(np.isnan(found.drift.kl))
    assert np.all(np.isfinite(found.baseline.nll))


def test_different_tokenizers_are_refused(models, tmp_path):
    other = shutil.copytree(models.base, tmp_path / "other")
    models.write_tokenizer(other, words=[f"w{number}" for number in reversed(range(60))])
    with pytest.raises(CheckpointError, match="cut document 1 into different tokens"):
        tokenize(load_pair(models.base, other), models.documents, 20)
    models.write_tokenizer(other, bos=False)
    with pytest.raises(CheckpointError, match="different tokens"):
        tokenize(load_pair(models.base, other), models.documents, 20)


def test_tokens_without_an_embedding_are_refused(pair):
    small = Pair(pair.baseline, pair.candidate, pair.tokenizers, 64, 10)
    with pytest.raises(CheckpointError, match="document 1 has token 45, but a model has only 10"):
        tokenize(small, ["w42"], None)


def test_different_vocabularies_are_refused(models, ids, tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    other = shutil.copytree(models.base, tmp_path / "other")
    config = Qwen3Config.from_pretrained(models.base)
    config.vocab_size = 70
    Qwen3ForCausalLM(config).save_pretrained(other)
    with pytest.raises(CheckpointError, match="different numbers of tokens: 64 and 70"):
        measure(load_pair(models.base, other), ids, drift=False)


def damaged(folder: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif damage == "tensor missing":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif damage == "shape":
        tensors = load_file(weights)
        tensors["model.norm.weight"] = torch.ones(31)
        save_file(tensors, weights, metadata={"format": "pt"})
    elif damage == "own code":
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "model_type": "mine",
            "auto_map": {"AutoModelForCausalLM": "mine.Model", "AutoConfig": "mine.Config"},
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "mine.py").write_text("raise SystemExit('code of a checkpoint was run')")
    else:
        for file in folder.glob("tokenizer*"):
            file.unlink()


@pytest.mark.parametrize("damage", ["truncated", "pickle", "tensor missing", "shape", "own code", "no tokenizer"])
def test_checkpoints_that_do_not_load_are_refused(models, tmp_path, damage):
    other = shutil.copytree(models.base, tmp_path / "other")
    damaged(other, damage)
    with pytest.raises(CheckpointError, match=str(other)) as caught:
        load_pair(models.base, other)
    if damage == "tensor missing":
        assert "lacks 1 tensors" in caught.value.message
        assert "up_proj" in caught.value.message
