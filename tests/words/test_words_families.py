"""The words of units in many families, against transformers' own modules with one unit acting alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from words.word_oracle import LAST, MODULES, Oracle

from planner.words.words import TokenWeight, Unit, words_of

TOP = 6
SANDWICHED = {"gemma2", "gemma3_text-untied"}
APART = {"mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "opt-post", "bloom-residual"}
DENSE = [key for key in MODULES if key not in APART]
FAR = 1e6
"""A vector of this length makes a normaliser's epsilon nothing."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=DENSE)
def oracle(request: pytest.FixtureRequest, tmp_path: Path) -> Oracle:
    return Oracle(request.param, tmp_path)


def agrees(listed: Sequence[TokenWeight], expected: np.ndarray[Any, Any], *, up: bool, rel: float = 1e-4) -> None:
    """The list holds the largest (or smallest) of the expected values, in order, each with its own."""
    ordered = np.sort(expected)[::-1] if up else np.sort(expected)
    assert len(listed) == TOP
    np.testing.assert_allclose([one.value for one in listed], ordered[:TOP], rtol=rel, atol=1e-9)
    np.testing.assert_allclose([one.value for one in listed], expected[[one.id for one in listed]], rtol=rel, atol=1e-9)


def to_scale(listed: Sequence[TokenWeight], expected: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Expected values times the positive number that brings them to the list's scale."""
    factor = listed[0].value / expected[listed[0].id]
    assert factor > 0, "what the model raises is not among what is said to be promoted"
    return expected * factor


def test_a_neuron_of_the_last_layer_moves_the_logits_that_its_words_name(oracle: Oracle) -> None:
    neurons = (1, 17)
    found = words_of(oracle.checkpoint, oracle.map, [Unit("neuron", LAST, n) for n in neurons], top=TOP)
    for neuron, words in zip(neurons, found, strict=True):
        logits = oracle.logits_of(oracle.written_by_neuron(LAST, neuron))
        expected = to_scale(words.promotes, logits)
        agrees(words.promotes, expected, up=True)
        agrees(words.suppresses, expected, up=False)


def test_a_neuron_reads_the_tokens_that_excite_it(oracle: Oracle) -> None:
    layer = 1
    activations = oracle.activations(layer)
    neurons = (0, 5, activations.shape[1] - 1)
    found = words_of(oracle.checkpoint, oracle.map, [Unit("neuron", layer, n) for n in neurons], top=TOP)
    for neuron, words in zip(neurons, found, strict=True):
        # The modules have an epsilon in their normalisers.
        agrees(words.reads_most, activations[:, neuron], up=True, rel=2e-3)
        agrees(words.reads_least, activations[:, neuron], up=False, rel=2e-3)


@pytest.mark.parametrize("key", [*DENSE, "deepseek_v3"])
def test_a_head_carries_what_the_leading_direction_of_its_circuit_says(key: str, tmp_path: Path) -> None:
    oracle = Oracle(key, tmp_path)
    units = [Unit("head", LAST, head) for head in (0, 1, 3)]
    found = words_of(oracle.checkpoint, oracle.map, units, top=TOP)
    width = next(
        band.indices.shape[1]
        for p in oracle.map.in_layer(LAST)
        for band in p.bands
        if (band.unit, band.part) == ("head", "output")
    )
    read = oracle.read_by_attention(LAST)
    for unit, words in zip(units, found, strict=True):
        circuit = oracle.circuit(LAST, unit.index, width)
        left, singular, right = torch.linalg.svd(circuit)
        assert words.share == pytest.approx(float(singular[0] ** 2 / (singular**2).sum()), rel=1e-4)
        reads = (read @ right[0]).numpy()
        # Both ends turned or neither: singular vectors come in pairs.
        sign = np.sign(reads[words.reads_most[0].id] * words.reads_most[0].value)
        agrees(words.reads_most, sign * reads, up=True, rel=2e-3)
        agrees(words.reads_least, sign * reads, up=False, rel=2e-3)
        if oracle.tiny.key not in SANDWICHED:  # a norm of the attention's output comes between, which rescales it
            logits = to_scale(words.promotes, oracle.logits_of(left[:, 0] * sign))
            agrees(words.promotes, logits, up=True)
            agrees(words.suppresses, logits, up=False)
        assert words.promotes[0].value >= -words.suppresses[0].value


@pytest.mark.parametrize("key", sorted(SANDWICHED))
def test_what_a_head_writes_passes_the_norm_of_the_attentions_output(key: str, tmp_path: Path) -> None:
    oracle = Oracle(key, tmp_path)
    (words,) = words_of(oracle.checkpoint, oracle.map, [Unit("head", LAST, 2)], top=TOP)
    left, _, right = torch.linalg.svd(oracle.circuit(LAST, 2, 10))
    reads = (oracle.read_by_attention(LAST) @ right[0]).numpy()
    sign = np.sign(reads[words.reads_most[0].id] * words.reads_most[0].value)
    with torch.no_grad():
        written = oracle.part(LAST, "post_attention_layernorm")(FAR * sign * left[:, 0])
    logits = to_scale(words.promotes, oracle.logits_of(written))
    agrees(words.promotes, logits, up=True)
    agrees(words.suppresses, logits, up=False)


def test_a_channel_and_a_row_of_the_embedding(oracle: Oracle) -> None:
    channel, token = 9, 40
    of_channel, of_token = words_of(
        oracle.checkpoint, oracle.map, [Unit("channel", None, channel), Unit("token", None, token)], top=TOP
    )
    unit = torch.zeros(oracle.embedding.shape[1], dtype=torch.float64)
    unit[channel] = 1
    logits = to_scale(of_channel.promotes, oracle.logits_of(unit))
    agrees(of_channel.promotes, logits, up=True)
    agrees(of_channel.suppresses, logits, up=False)
    rows = oracle.model.get_input_embeddings().weight.detach()
    cosines = torch.nn.functional.cosine_similarity(rows, rows[token][None], dim=1).numpy()
    cosines[token] = -2
    agrees(of_token.neighbours, cosines, up=True)


@pytest.mark.parametrize(("key", "expert"), [("mixtral", 3), ("qwen3_moe", 0), ("qwen2_moe", 2), ("qwen2_moe", None)])
def test_neurons_of_experts_and_of_shared_experts(key: str, expert: int | None, tmp_path: Path) -> None:
    oracle = Oracle(key, tmp_path)
    (words,) = words_of(oracle.checkpoint, oracle.map, [Unit("neuron", LAST, 7, expert)], top=TOP)
    where = f"model.layers.{LAST}.mlp." + ("shared_expert." if expert is None else f"experts.{expert}.")
    gate, up, down = (f"{where}{part}_proj.weight" for part in ("gate", "up", "down"))
    if key == "mixtral":
        where = f"model.layers.{LAST}.block_sparse_moe.experts.{expert}."
        gate, up, down = (f"{where}{part}.weight" for part in ("w1", "w3", "w2"))
    stored = {name: torch.tensor(oracle.tiny.tensors[name]) for name in (gate, up, down)}
    logits = to_scale(words.promotes, oracle.logits_of(stored[down][:, 7]))
    agrees(words.promotes, logits, up=True)
    agrees(words.suppresses, logits, up=False)
    with torch.no_grad():
        read = oracle.part(LAST, "post_attention_layernorm")(oracle.embedding)
    activations = (torch.nn.functional.silu(read @ stored[gate][7]) * (read @ stored[up][7])).numpy()
    agrees(words.reads_most, activations, up=True, rel=2e-3)
    agrees(words.reads_least, activations, up=False, rel=2e-3)


def test_norms_after_the_sums_and_a_narrower_embedding(tmp_path: Path) -> None:
    oracle = Oracle("opt-post", tmp_path)
    neuron, head = words_of(oracle.checkpoint, oracle.map, [Unit("neuron", LAST, 3), Unit("head", 0, 1)], top=TOP)
    down = oracle.part(LAST, "fc2")
    alone = torch.zeros(2, 1, oracle.inner(down), dtype=torch.float64)
    alone[0, 0, 3], alone[1, 0, 3] = 1e9, -1e9  # the stream is this vector alone, and the norm brings it to scale
    logits = oracle.run(2, {("in", down): lambda *_: (alone.reshape(2, -1),)})
    change = (logits[0] - logits[1]).numpy()
    expected = to_scale(neuron.promotes, change - change.mean())
    agrees(neuron.promotes, expected, up=True)
    agrees(neuron.suppresses, expected, up=False)
    attention = oracle.part(0, "self_attn")
    mine = slice(8, 16)
    with torch.no_grad():
        circuit = attention.out_proj.weight[:, mine] @ attention.v_proj.weight[mine]
        reads = oracle.model.model.decoder.project_in(oracle.embedding) @ torch.linalg.svd(circuit)[2][0]
    expected = reads.numpy() * np.sign(reads[head.reads_most[0].id].item() * head.reads_most[0].value)
    agrees(head.reads_most, expected, up=True)
    agrees(head.reads_least, expected, up=False)


def test_bloom_reads_what_its_stream_holds_after_the_norm(tmp_path: Path) -> None:
    """Its option adds to the norm's output, so that a later layer reads the embedding through every earlier norm."""
    oracle = Oracle("bloom-residual", tmp_path)
    (words,) = words_of(oracle.checkpoint, oracle.map, [Unit("channel", 0, 4)], top=TOP)
    layer = oracle.part(1, "input_layernorm"), oracle.part(1, "post_attention_layernorm")
    later = oracle.part(2, "input_layernorm"), oracle.part(2, "post_attention_layernorm")
    written = torch.zeros(2, 32, dtype=torch.float64)
    written[0, 4] = FAR
    with torch.no_grad():
        for norm in (*layer, *later):
            written = norm(written)
            written = FAR * torch.stack([written[0] - written[1], torch.zeros(32, dtype=torch.float64)])
    logits = to_scale(words.promotes, oracle.logits_of(written[0]))
    agrees(words.promotes, logits, up=True)
    agrees(words.suppresses, logits, up=False)
