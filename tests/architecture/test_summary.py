"""The map as a document: facts that transformers' own modules and configurations bear out, and every tensor."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.families import FAMILIES
from models.oracle import config_of, machine
from models.tiny import build

from planner.architecture import ModelSummary, map_of, summary_of
from planner.architecture.families import families

KEYS = sorted(key for key, family in FAMILIES.items() if family.model_type in families())


def _summary(key: str, **config: object) -> ModelSummary:
    tiny = build(key)
    return summary_of(map_of(tiny.config | config, {n: v.shape for n, v in tiny.tensors.items()}), key)


@pytest.mark.parametrize("key", KEYS)
def test_every_family_is_told_as_transformers_builds_it(key: str) -> None:
    found, config, model = _summary(key), config_of(key), machine(key).model
    facts = "\n".join(found.facts)
    assert found.known, found.reason
    assert found.layers == config.num_hidden_layers
    assert facts.startswith(f"{found.layers} layers, {found.width:,} channels, {config.vocab_size:,} tokens")
    assert {tensor.name for tensor in found.tensors} | set(found.unread) | set(found.unmapped) == set(
        build(key).tensors
    )
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("RMSNorm" in facts) == any("RMS" in kind for kind in kinds)
    assert f"{config.num_attention_heads} heads of " in facts
    groups = getattr(config, "num_key_value_heads", None)
    if groups and groups < config.num_attention_heads and "falcon" not in key:
        assert ("(MQA)" if groups == 1 else f"{groups} key/value heads (GQA)") in facts
    tied = build(key).tied
    assert ("head: tied to" in facts) == tied
    experts = next((getattr(config, n) for n in ("num_local_experts", "n_routed_experts") if hasattr(config, n)), None)
    experts = experts or getattr(config, "num_experts", None)
    assert bool(re.search(r"MLP: \d+ experts", facts)) == bool(experts)
    if experts:
        assert f"MLP: {experts} experts, {config.num_experts_per_tok} a token" in facts


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("smollm3", "not rotated (layer 1)"),
        ("smollm3", "channels rotated (layers 0,2)"),
        ("qwen3_moe-dense", "MLP: gated, 48 neurons, silu (layer 1)"),
        ("deepseek_v3", "attention: latent (MLA), 4 heads of 10, 14 latent channels"),
        ("deepseek_v3", "by sigmoid, and shared ones; silu (layers 1-2)"),
        ("gemma2", "after the MLP: post_feedforward_layernorm, RMSNorm, as 1 + w"),
        ("gemma2", "its logits pass a cap"),
        ("olmo2", "after the attention: post_attention_layernorm, RMSNorm"),
        ("olmo-clip", "queries, keys and values are clipped"),
        ("olmo", "before the attention: LayerNorm"),
        ("opt-post", "after the attention is added: self_attn_layer_norm, LayerNorm, with bias"),
        ("gpt_neox", "attention and MLP side by side"),
        ("phi3", "gate and up in one"),
        ("bloom", "embedding: word_embeddings_layernorm, LayerNorm, with bias"),
        ("qwen3", "queries and keys: self_attn.q_norm, RMSNorm per head"),
        ("gpt2", "tied to transformer.wte.weight, not stored a second time"),
    ],
)
def test_what_is_special_is_said(key: str, said: str) -> None:
    assert said in "\n".join(_summary(key).facts)


def test_a_sequential_neox_says_nothing_of_sides_and_a_plain_olmo_nothing_of_clips() -> None:
    assert "side by side" not in "\n".join(_summary("gpt_neox-sequential").facts)
    assert "clipped" not in "\n".join(_summary("olmo").facts)
    assert "(layer" not in "\n".join(_summary("llama").facts)


def test_a_stored_copy_of_a_tied_head_is_named() -> None:
    tiny = build("qwen3-tied", with_copy=True)
    found = summary_of(map_of(tiny.config, {n: v.shape for n, v in tiny.tensors.items()}), "copy")
    assert "head: tied to model.embed_tokens.weight, stored as lm_head.weight" in found.facts
    assert [tensor.name for tensor in found.tensors if tensor.part == "head"] == ["lm_head.weight"]


def test_heads_and_neurons_are_counted_with_their_widths() -> None:
    by_name = {tensor.name: tensor for tensor in _summary("phi3").tensors}
    qkv = by_name["model.layers.1.self_attn.qkv_proj.weight"]
    assert [(b.part, b.unit, b.axis, b.count, b.width) for b in qkv.bands] == [
        ("query", "head", "rows", 4, 8),
        ("key", "head", "rows", 2, 8),
        ("value", "head", "rows", 2, 8),
    ]
    assert (qkv.layer, qkv.part, qkv.reads, qkv.writes) == (1, "query+key+value", "columns", None)
    gpt2 = {tensor.name: tensor for tensor in _summary("gpt2").tensors}
    down = gpt2["transformer.h.2.mlp.c_proj.weight"]
    assert (down.reads, down.writes) == (None, "columns")
    assert [(b.part, b.unit, b.axis, b.count, b.width) for b in down.bands] == [("down", "neuron", "rows", 48, 1)]
    experts = {tensor.name: tensor for tensor in _summary("mixtral").tensors}
    assert {tensor.expert for tensor in experts.values()} == {None, 0, 1, 2, 3}


def test_an_unknown_family_has_a_reason_and_nothing_else() -> None:
    found = _summary("llama", model_type="something_new")
    assert (found.known, found.family, found.layers, found.facts, found.tensors) == (False, None, None, (), ())
    assert "'something_new' has no declaration here" in found.reason
    wrong = _summary("llama", num_key_value_heads=4)
    assert (wrong.known, wrong.family) == (False, "llama")
    assert "k_proj.weight is [16, 32]; its configuration asks for [32, 32]" in wrong.reason


def test_code_of_its_own_is_said() -> None:
    assert "config.json points to code of its own" in " ".join(_summary("llama", auto_map={"A": "b"}).facts)
