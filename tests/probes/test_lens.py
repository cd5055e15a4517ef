"""The lens: it reads the residual stream that transformers reports, and ends with the model's own predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from lens_models import TEXTS, folder_of
from models.families import FAMILIES
from models.tiny import build

from planner.architecture import map_of, unknown_map
from planner.checkpoint import open_checkpoint
from planner.errors import CheckpointError, TextInvalid, UsageError
from planner.inference import encode, load_model, load_tokenizer, padded, quiet
from planner.probes.lens import Question, lens
from planner.probes.lens_types import LensText
from planner.probes.residuals import ResidualStream, decoder_blocks

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"
DOCUMENTS = [list(range(3, 33)), [60, 40, 20, 10, 50], list(range(50, 30, -1))]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of tests that run side by side only wait for each other."""
    monkeypatch.setattr("planner.inference.loading.cores", lambda: 1)


def opened(key: str, folder: Path) -> ResidualStream:
    path = build(key).write(folder)
    with quiet():
        model = load_model(path)
    return ResidualStream(model, decoder_blocks(model, map_of(build(key).config, shapes(key)), shapes(key)))


def shapes(key: str) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in build(key).tensors.items()}


@pytest.mark.parametrize("key", FAMILIES)
def test_every_family_ends_with_its_own_logits(key: str, tmp_path: Path) -> None:
    side = opened(key, tmp_path / "model")
    inputs, _, mask = padded(DOCUMENTS)
    with torch.inference_mode():
        whole = side.model(input_ids=inputs, attention_mask=mask, use_cache=False, output_hidden_states=True)
        pieces = list(side.runs(inputs, mask, 100))
        ((streams, logits),) = pieces
        assert torch.equal(logits, whole.logits)
        # What transformers reports last has been through the final norm.
        for mine, theirs in zip(streams[:-1], whole.hidden_states[:-1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
        for row, ids in enumerate(DOCUMENTS):
            here = slice(0, len(ids) - 1)
            torch.testing.assert_close(side.lens(streams[-1][row, here]), logits[row, here], rtol=0, atol=1e-5)
        earlier = side.lens(streams[1][0])
    assert float((earlier - logits[0]).abs().max()) > 0.01, "an earlier layer is not the last one"


def by_hand(model: Any, key: str, stream: torch.Tensor) -> torch.Tensor:
    """Final norm, head and what the family does to its logits, written out."""
    config = model.config
    if key == "gemma2":
        cap = config.final_logit_softcapping
        return torch.tanh(model.lm_head(model.model.norm(stream)) / cap) * cap
    if key == "granite":
        return model.lm_head(model.model.norm(stream)) / config.logits_scaling
    if key == "cohere":
        return model.lm_head(model.model.norm(stream)) * config.logit_scale
    if key == "opt-post":
        return model.lm_head(model.model.decoder.project_out(stream))
    if key == "gpt2":
        return model.lm_head(model.transformer.ln_f(stream))
    return model.lm_head(model.model.norm(stream))


@pytest.mark.parametrize("key", ["qwen3", "gemma2", "granite", "cohere", "opt-post", "gpt2"])
def test_the_lens_of_an_earlier_layer_by_hand(key: str, tmp_path: Path) -> None:
    side = opened(key, tmp_path / "model")
    inputs, _, mask = padded(DOCUMENTS[:1])
    with torch.inference_mode():
        ((streams, _),) = side.runs(inputs, mask, 100)
        for stream in streams:
            torch.testing.assert_close(side.lens(stream[0]), by_hand(side.model, key, stream[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", ["llama", "gpt2", "bloom", "mistral-window"])
def test_a_long_document_in_pieces_is_the_same(key: str, tmp_path: Path) -> None:
    side = opened(key, tmp_path / "model")
    inputs, _, mask = padded(DOCUMENTS[:1])
    with torch.inference_mode():
        ((whole, _),) = side.runs(inputs, mask, 100)
        pieces = [streams for streams, _ in side.runs(inputs, mask, 7)]
    assert len(pieces) == 5
    for place, stream in enumerate(whole):
        torch.testing.assert_close(torch.cat([one[place] for one in pieces], 1), stream, rtol=0, atol=1e-4)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    side = opened("llama", tmp_path / "model")
    inputs, _, mask = padded(DOCUMENTS)
    with torch.inference_mode():
        before = side.model(input_ids=inputs).logits
        for streams, _ in side.runs(inputs, mask, 9):
            side.lens(streams[0][0])
            with pytest.raises(RuntimeError):
                side.lens(streams[0][0][:, :5])
        assert torch.equal(side.model(input_ids=inputs).logits, before)
    for block in side.blocks:
        assert "forward" not in vars(block)
        assert not block._forward_hooks
        assert not block._forward_pre_hooks


def test_blocks_are_found_by_names_where_the_family_is_unknown(tmp_path: Path) -> None:
    side = opened("llama", tmp_path / "model")
    assert decoder_blocks(side.model, unknown_map("nobody knows"), shapes("llama")) == list(side.model.model.layers)


def test_no_lens_where_the_blocks_are_no_chain(tmp_path: Path) -> None:
    side = opened("llama", tmp_path / "model")
    inputs, _, mask = padded(DOCUMENTS)

    def message(stream: ResidualStream) -> str:
        with torch.inference_mode(), pytest.raises(CheckpointError) as caught:
            list(stream.runs(inputs, mask, 100))
        return caught.value.message

    assert "one after another" in message(ResidualStream(side.model, side.blocks[::-1]))
    # All but the last block: the tail is not a function of what they leave. It says so before it measures anything.
    assert "residual stream alone" in message(ResidualStream(side.model, side.blocks[:2]))
    with pytest.raises(CheckpointError, match="no tensor is in a layer"):
        decoder_blocks(side.model, unknown_map(""), {"lm_head.weight": (64, 32)})
    with pytest.raises(CheckpointError, match="name the layers"):
        decoder_blocks(side.model, unknown_map(""), {k: v for k, v in shapes("llama").items() if "s.1." not in k})
    with torch.inference_mode():
        assert len(list(side.runs(inputs, mask, 100))) == 1, "no hook was left behind"


def test_loss_kl_and_agreement_of_the_bundled_model() -> None:
    texts = ("Once upon a time there was a dog.", "Ann had a red ball.", "The", "Tom and Ann went to the park, and")
    text = LensText(name="t", digest="blake3:0", documents=4, max_tokens=9)
    seen: list[tuple[int, int]] = []
    question = Question(documents=texts, text=text, prompts=texts[:2], top=3)
    found = lens(open_checkpoint(TINY_MODEL), question, progress=lambda *done: seen.append(done))
    with quiet():
        model, tokenizer = load_model(TINY_MODEL), load_tokenizer(TINY_MODEL)
    layers = len(model.model.layers)
    loss, kl, same, positions = torch.zeros(layers + 1), torch.zeros(layers + 1), torch.zeros(layers + 1), 0
    with torch.inference_mode():
        for ids in encode(tokenizer, texts, 9, None):
            out = model(torch.tensor([ids]), output_hidden_states=True)
            final = out.logits[0, :-1].log_softmax(-1)
            for place, stream in enumerate(out.hidden_states):
                read = stream if place == layers else model.model.norm(stream)
                mine = model.lm_head(read)[0, :-1].log_softmax(-1)
                loss[place] += torch.nn.functional.nll_loss(mine, torch.tensor(ids[1:]), reduction="sum")
                kl[place] += torch.nn.functional.kl_div(mine, final, reduction="sum", log_target=True)
                same[place] += (mine.argmax(-1) == final.argmax(-1)).sum()
            positions += len(ids) - 1
        for prompt, text_of in zip(found.prompts, texts, strict=False):
            (ids,) = encode(tokenizer, [text_of], None, None)
            out = model(torch.tensor([ids]), output_hidden_states=True)
            assert prompt.tokens == len(ids)
            for place, layer in enumerate(prompt.layers):
                stream = out.hidden_states[place][0, -1]
                logits = model.lm_head(stream if place == layers else model.model.norm(stream))
                values, places = logits.softmax(-1).topk(3)
                assert [token.id for token in layer.top] == places.tolist()
                assert [token.probability for token in layer.top] == pytest.approx(values.tolist(), abs=1e-5)
                assert [token.text for token in layer.top] == [tokenizer.decode([place]) for place in places.tolist()]
                assert layer.top_changed == ()
    assert found.positions == positions
    assert [layer.layer for layer in found.layers] == [None, *range(layers)]
    assert [layer.loss for layer in found.layers] == pytest.approx((loss / positions).tolist(), rel=1e-5)
    assert [layer.kl for layer in found.layers] == pytest.approx((kl / positions).tolist(), rel=1e-4, abs=1e-6)
    assert [layer.top1_agreement for layer in found.layers] == pytest.approx((same / positions).tolist())
    assert found.recovery is None
    assert (seen[0], seen[-1]) == ((0, positions), (positions, positions))


def test_documents_in_a_batch_and_small_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(folder_of("gpt2", tmp_path / "model"))
    whole = lens(checkpoint, Question(documents=TEXTS))
    monkeypatch.setattr("planner.probes.lens._BATCH_TOKENS", 3)
    monkeypatch.setattr("planner.probes.residuals._LENS_ELEMENTS", 2 * 64)
    pieces = lens(checkpoint, Question(documents=TEXTS))
    assert pieces.positions == whole.positions == 21
    for one, other in zip(whole.layers, pieces.layers, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.kl == pytest.approx(one.kl, rel=1e-4, abs=1e-6)
        assert other.top1_agreement == one.top1_agreement


def test_prompts_alone_are_measured_on_without_a_loss(tmp_path: Path) -> None:
    found = lens(open_checkpoint(folder_of("llama", tmp_path / "model")), Question(prompts=TEXTS))
    assert found.positions == sum(len(text.split()) + 1 for text in TEXTS)
    assert all(layer.loss is None for layer in found.layers)
    assert found.layers[-1].kl == pytest.approx(0, abs=1e-6)
    assert found.layers[-1].top1_agreement == 1


def test_what_cannot_be_looked_at(tmp_path: Path) -> None:
    folder = folder_of("gpt2", tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UsageError, match="nothing to look at"):
        lens(checkpoint, Question())
    with pytest.raises(UsageError, match="prompt 2 has 41 tokens; the model takes 40"):
        lens(checkpoint, Question(prompts=("w1", " ".join(["w1"] * 40))))
    with pytest.raises(TextInvalid, match="no token to predict, such as document 2"):
        lens(checkpoint, Question(documents=("w1", " ")))
    without = open_checkpoint(folder_of("gpt2", tmp_path / "without", bos=False))
    with pytest.raises(UsageError, match="prompt 2 has no token"):
        lens(without, Question(prompts=("w1", "")))
    broken = open_checkpoint(folder_of("llama", tmp_path / "broken"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken.path / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"].fill_(float("nan"))
    save_file(tensors, broken.path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not finite"):
        lens(open_checkpoint(broken.path), Question(documents=TEXTS))
