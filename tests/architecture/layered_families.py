"""Families with fused, biased, parallel or LayerNorm blocks, in more configurations than the usual; and their maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from models.families import FAMILIES, Family
from models.tiny import Tiny

from planner.architecture.mapping import map_of
from planner.architecture.model_map import ModelMap

__all__ = ["KEYS", "described", "mapped", "more_families", "shapes_of"]

_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
_SMALL |= {"vocab_size": 64, "max_position_embeddings": 64}
_OPT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": 64}
_OPT |= {"max_position_embeddings": 40}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_hidden_size": 48, "vocab_size": 64}
_MPT = {"d_model": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 64, "max_seq_len": 64}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, "vocab_size": 64}

EXTRA = {
    "b-persimmon": Family("persimmon", _SMALL),
    "b-persimmon-plain": Family("persimmon", _SMALL | {"qk_layernorm": False, "partial_rotary_factor": 0.25}),
    "b-phi-tied": Family("phi", _SMALL | {"tie_word_embeddings": True, "partial_rotary_factor": 0.25}),
    "b-phi3-tied": Family("phi3", _SMALL | {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "b-gpt2-inner": Family("gpt2", _GPT2 | {"scale_attn_by_inverse_layer_idx": False, "activation_function": "relu"}),
    "b-neox-rotary": Family("gpt_neox", _SMALL | {"rotary_pct": 1.0, "tie_word_embeddings": True}),
    "b-opt-bare": Family("opt", _OPT | {"layer_norm_elementwise_affine": False}),
    "b-opt-unfinal": Family("opt", _OPT | {"_remove_final_layer_norm": True, "tie_word_embeddings": False}),
    "b-opt-wide": Family("opt", _OPT | {"word_embed_proj_dim": 40, "tie_word_embeddings": False}),
    "b-falcon-heads": Family("falcon", _FALCON | {"multi_query": False, "parallel_attn": True}),
    "b-falcon-sequential": Family("falcon", _FALCON | {"parallel_attn": False, "tie_word_embeddings": False}),
    "b-cohere-bias": Family("cohere", _SMALL | {"attention_bias": True, "use_qk_norm": True}),
    "b-cohere2-full": Family("cohere2", _SMALL | {"layer_types": ["full_attention"] * 3}),
    "b-cohere2-pattern": Family("cohere2", _SMALL | {"sliding_window_pattern": 2, "attention_bias": True}),
    "b-glm-plain": Family("glm", _SMALL | {"head_dim": 12, "num_key_value_heads": 2, "attention_bias": False}),
    "b-glm4-wide": Family("glm4", _SMALL | {"head_dim": 12, "num_key_value_heads": 2, "partial_rotary_factor": 1.0}),
    "b-nemotron-wide": Family("nemotron", _SMALL | {"head_dim": 12, "num_key_value_heads": 2}),
    "b-mpt-clip": Family("mpt", _MPT | {"attn_config": {"clip_qkv": 0.5}}),
}
TYPES = "phi phi3 gpt2 gpt_neox opt bloom falcon cohere cohere2 starcoder2 stablelm glm glm4 nemotron gpt_bigcode gptj"
TYPES += " mpt persimmon"
KEYS = [key for key, one in FAMILIES.items() if one.model_type in TYPES.split()] + list(EXTRA)


def more_families(monkeypatch: Any) -> None:
    """Have the configurations above built by the same means as the families of every test."""
    for key, one in EXTRA.items():
        monkeypatch.setitem(FAMILIES, key, one)


def shapes_of(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in tiny.tensors.items()}


def mapped(tiny: Tiny) -> ModelMap:
    found = map_of(tiny.config, shapes_of(tiny))
    assert found.known, found.reason
    return found


def described(found: ModelMap) -> list[Any]:
    """A graph as something that can be compared."""
    assert found.graph is not None
    fields = []
    for node in found.graph:
        words = {name: getattr(node, name) for kind in type(node).__mro__ for name in getattr(kind, "__slots__", ())}
        fields.append((type(node), {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in words.items()}))
    return [*fields, found.tied]
