"""The families of models that the tests build tiny: one entry each, named after the architecture and what is special.

This file needs neither torch nor transformers. `build` and `logits` are in `tiny.py`, `classify` in `difference.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FAMILIES", "Family"]

HIDDEN, HEADS, GROUPS, INNER, VOCABULARY, LAYERS, EXPERTS = 32, 4, 2, 48, 64, 3, 4

_LLAMA = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
_GQA = _LLAMA | {"num_key_value_heads": GROUPS}
_GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 40}
_GPT2 |= {"vocab_size": VOCABULARY}
_OPT = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": INNER}
_OPT |= {"vocab_size": VOCABULARY, "max_position_embeddings": 40}
_FALCON = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_hidden_size": INNER}
_FALCON |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
_MOE = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MLA = {
    "kv_lora_rank": 14,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 11,
    "num_key_value_heads": HEADS,
}
_DEEPSEEK = _LLAMA | _MLA | {"moe_intermediate_size": 24, "n_shared_experts": 2, "first_k_dense_replace": 1}
_DEEPSEEK |= {"num_experts_per_tok": 2}
_GROUPED = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}
_SANDWICH = _GQA | {"head_dim": 10, "query_pre_attn_scalar": 12}
_WINDOWS = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_UNTIED = {"tie_word_embeddings": False}
_TIED = {"tie_word_embeddings": True}


@dataclass(frozen=True)
class Family:
    """One architecture, small: the `model_type` and the arguments of transformers' config class."""

    model_type: str
    arguments: Mapping[str, Any]
    notes: str = ""
    inert: Mapping[str, str] = field(default_factory=dict)
    """End of a stored name -> why noise on it changes no logit."""


_FREE_KEY_BIAS = "a key's bias adds the same amount to every score of a query where no rotary position follows"

FAMILIES: dict[str, Family] = {
    # Pre-norm, RMSNorm, gated MLP.
    "llama": Family("llama", _GQA, "grouped queries, untied"),
    "llama-mha": Family("llama", _LLAMA, "as many key heads as query heads"),
    "llama-mqa": Family("llama", _LLAMA | {"num_key_value_heads": 1}, "one key head"),
    "llama-bias": Family("llama", _GQA | {"attention_bias": True, "mlp_bias": True}, "a bias on every projection"),
    "llama-tied": Family("llama", _GQA | _TIED, "the head is the embedding"),
    "llama-wide": Family("llama", _GQA | {"head_dim": 10}, "heads x head_dim is not the hidden size"),
    "mistral": Family("mistral", _GQA | {"sliding_window": None}),
    "mistral-window": Family("mistral", _GQA | {"sliding_window": 7}, "attention over the last 7 tokens"),
    "mixtral": Family("mixtral", _GQA | {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}),
    "mixtral-top1": Family(
        "mixtral",
        _GQA | {"num_local_experts": EXPERTS, "num_experts_per_tok": 1},
        "one expert a token, its weight renormalised to 1",
    ),
    "qwen2": Family("qwen2", _GQA | _UNTIED, "bias on q, k, v only, by architecture"),
    "qwen2-tied": Family("qwen2", _GQA | _TIED),
    "qwen3": Family("qwen3", _GQA | _UNTIED | {"head_dim": 10}, "RMSNorm on every query and key head"),
    "qwen3-tied": Family("qwen3", _GQA | _TIED | {"head_dim": 10}),
    "qwen3-bias": Family("qwen3", _GQA | _UNTIED | {"head_dim": 10, "attention_bias": True}),
    "qwen3_moe": Family("qwen3_moe", _GQA | _MOE | {"head_dim": 10, "norm_topk_prob": True}),
    "qwen3_moe-raw": Family(
        "qwen3_moe", _GQA | _MOE | {"head_dim": 10, "norm_topk_prob": False}, "the chosen weights do not sum to 1"
    ),
    "qwen3_moe-top1": Family(
        "qwen3_moe", _GQA | _MOE | {"head_dim": 10, "norm_topk_prob": True, "num_experts_per_tok": 1}
    ),
    "qwen3_moe-dense": Family(
        "qwen3_moe", _GQA | _MOE | {"head_dim": 10, "mlp_only_layers": [1]}, "layer 1 has a plain MLP"
    ),
    "qwen3_moe-step": Family(
        "qwen3_moe", _GQA | _MOE | {"head_dim": 10, "decoder_sparse_step": 2}, "experts in layer 1 only"
    ),
    "granite": Family(
        "granite",
        _GQA
        | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2},
    ),
    "granite-bias": Family(
        "granite", _GQA | {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.7, "logits_scaling": 2.0}
    ),
    "smollm3": Family("smollm3", _GQA | {"no_rope_layers": [1, 0, 1]}, "layer 1 without rotary positions; tied"),
    "smollm3-untied": Family("smollm3", _GQA | _UNTIED | {"no_rope_layers": [1, 1, 0]}),
    "helium": Family("helium", _GQA | {"head_dim": 8}),
    "ernie4_5": Family("ernie4_5", _GQA | {"head_dim": 8}, "tied"),
    "ernie4_5-bias": Family("ernie4_5", _GQA | _UNTIED | {"head_dim": 8, "use_bias": True}),
    "arcee": Family("arcee", _GQA, "plain MLP, squared relu"),
    "seed_oss": Family("seed_oss", _GQA | {"head_dim": 10}, "bias on q, k, v, none on o"),
    # Fused projections.
    "phi3": Family("phi3", _GQA, "qkv_proj = q, k, v; gate_up_proj = gate, up"),
    "phi3-partial": Family("phi3", _GQA | {"partial_rotary_factor": 0.5}),
    "glm": Family("glm", _GQA | {"head_dim": 8, "attention_bias": True}),
    "glm4": Family("glm4", _GQA | {"head_dim": 8, "attention_bias": True}, "norms after each branch as well"),
    "glm4-plain": Family("glm4", _GQA | {"head_dim": 8, "attention_bias": False}),
    # RMSNorm stored as w of (1 + w), gelu, tied.
    "gemma": Family("gemma", _GQA | {"head_dim": 10}),
    "gemma2": Family("gemma2", _SANDWICH, "sandwich norms, soft caps on scores and logits"),
    "gemma2-uncapped": Family("gemma2", _SANDWICH | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3_text": Family("gemma3_text", _SANDWICH | _WINDOWS, "sandwich norms and qk-norm"),
    "gemma3_text-untied": Family("gemma3_text", _SANDWICH | _UNTIED | _WINDOWS),
    # RMSNorm after each branch and none before.
    "olmo2": Family("olmo2", _GQA | {"tie_word_embeddings": False}, "qk-norm over all heads at once"),
    "olmo3": Family("olmo3", _GQA | _WINDOWS),
    "exaone4": Family("exaone4", _GQA | {"sliding_window": 9, "sliding_window_pattern": 2}, "layer 1 without rotary"),
    # LayerNorm without weights.
    "olmo": Family("olmo", _GQA),
    "olmo-clip": Family("olmo", _GQA | {"clip_qkv": 0.5}, "q, k, v clamped"),
    # LayerNorm.
    "gpt2": Family("gpt2", _GPT2, "matrices stored [in, out]; tied"),
    "gpt2-untied": Family("gpt2", _GPT2 | _UNTIED),
    "gpt_bigcode": Family("gpt_bigcode", _GPT2, "one key head; matrices stored [out, in]; tied"),
    "gpt_bigcode-mha": Family("gpt_bigcode", _GPT2 | {"multi_query": False}),
    "gptj": Family(
        "gptj",
        {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 64, "rotary_dim": 4}
        | {"vocab_size": VOCABULARY},
        "parallel blocks under one norm",
    ),
    "gpt_neox": Family("gpt_neox", _LLAMA, "parallel blocks, each under its own norm"),
    "gpt_neox-sequential": Family("gpt_neox", _LLAMA | {"use_parallel_residual": False}),
    "gpt_neox-nobias": Family("gpt_neox", _LLAMA | {"attention_bias": False}),
    "opt": Family("opt", _OPT, "relu; tied", inert={"k_proj.bias": _FREE_KEY_BIAS}),
    "opt-post": Family(
        "opt",
        _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
        "opt-350m: norms after the sums, projections in and out of a narrower embedding",
        inert={"k_proj.bias": _FREE_KEY_BIAS},
    ),
    "opt-nobias": Family("opt", _OPT | {"enable_bias": False}),
    "bloom": Family(
        "bloom",
        {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCABULARY},
        "alibi; a norm right after the embedding; q, k, v interleaved by head; tied",
    ),
    "bloom-residual": Family(
        "bloom",
        {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCABULARY}
        | {"apply_residual_connection_post_layernorm": True},
        "the residual is taken after the norm",
    ),
    "falcon": Family(
        "falcon",
        _FALCON | {"multi_query": True, "parallel_attn": True, "bias": False, "alibi": False},
        "falcon-7b: one key head, one norm before both branches; tied",
    ),
    "falcon-new": Family(
        "falcon",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": GROUPS, "bias": False, "alibi": False},
        "falcon-40b: grouped queries interleaved by group, two norms",
    ),
    "falcon-new-onenorm": Family(
        "falcon",
        _FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": GROUPS, "num_ln_in_parallel_attn": 1, "bias": False},
        "falcon2-11b",
    ),
    "falcon-alibi": Family(
        "falcon",
        _FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
        "falcon-rw: alibi, sequential, biases",
    ),
    "mpt": Family(
        "mpt",
        {"d_model": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "vocab_size": VOCABULARY, "max_seq_len": 64}
        | {"expansion_ratio": 2},
        "alibi, no bias anywhere; tied",
    ),
    "phi": Family("phi", _LLAMA | {"partial_rotary_factor": 0.5}, "parallel blocks under one norm, biased head"),
    "phi-qknorm": Family("phi", _LLAMA | {"partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi-gqa": Family("phi", _GQA | {"partial_rotary_factor": 0.5}),
    "cohere": Family("cohere", _GQA | {"logit_scale": 0.5}, "LayerNorm without bias, parallel, tied, scaled logits"),
    "cohere-qknorm": Family("cohere", _GQA | {"logit_scale": 0.5, "use_qk_norm": True}, "a weight for each head"),
    "cohere2": Family("cohere2", _GQA | _WINDOWS | {"logit_scale": 0.5}, "layer 1 without rotary positions"),
    "starcoder2": Family("starcoder2", _GQA | {"sliding_window": None}, "biases everywhere; tied by default"),
    "starcoder2-nobias": Family("starcoder2", _GQA | _UNTIED | {"use_bias": False, "sliding_window": None}),
    "stablelm": Family("stablelm", _LLAMA | {"partial_rotary_factor": 0.5, "num_key_value_heads": HEADS}),
    "stablelm-gqa": Family("stablelm", _GQA | {"partial_rotary_factor": 0.5}),
    "stablelm-qknorm": Family("stablelm", _GQA | {"partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "stablelm-parallel": Family("stablelm", _GQA | {"partial_rotary_factor": 0.5, "use_parallel_residual": True}),
    "stablelm-bias": Family("stablelm", _GQA | {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "nemotron": Family("nemotron", _GQA | {"partial_rotary_factor": 0.5}, "LayerNorm of (1 + w), squared relu"),
    "nemotron-bias": Family(
        "nemotron", _GQA | {"partial_rotary_factor": 0.5, "attention_bias": True, "mlp_bias": True}
    ),
    # Experts, and attention through a low rank.
    "qwen2_moe": Family(
        "qwen2_moe", _GQA | _MOE | {"shared_expert_intermediate_size": 20}, "a shared expert behind a gate"
    ),
    "olmoe": Family("olmoe", _GQA | {"num_experts": EXPERTS, "num_experts_per_tok": 2}),
    "olmoe-clip": Family("olmoe", _GQA | {"num_experts": EXPERTS, "num_experts_per_tok": 2, "clip_qkv": 0.5}),
    "deepseek_v2": Family(
        "deepseek_v2",
        _DEEPSEEK | {"q_lora_rank": 22, "n_routed_experts": EXPERTS, "topk_method": "greedy"},
        "latent attention, softmax router; layer 0 dense",
    ),
    "deepseek_v2-noqlora": Family(
        "deepseek_v2", _DEEPSEEK | {"q_lora_rank": None, "n_routed_experts": EXPERTS, "topk_method": "greedy"}
    ),
    "deepseek_v2-grouped": Family(
        "deepseek_v2", _DEEPSEEK | _GROUPED | {"q_lora_rank": 22, "topk_method": "group_limited_greedy"}
    ),
    "deepseek_v3": Family(
        "deepseek_v3", _DEEPSEEK | _GROUPED | {"q_lora_rank": 22}, "sigmoid router with a bias that only selects"
    ),
    "deepseek_v3-noqlora": Family("deepseek_v3", _DEEPSEEK | _GROUPED | {"q_lora_rank": None, "attention_bias": True}),
}
