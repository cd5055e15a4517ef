"""Qwen2-MoE: Qwen2 with a mixture of experts in some layers, and a shared expert behind a gate of its own."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, experts, gated_mlp

__all__ = ["FAMILY"]


def qwen2_moe(config: Config) -> Decoder:
    """A layer is dense if `mlp_only_layers` names it, or if `decoder_sparse_step` passes over it."""
    config = config.assuming(num_key_value_heads=16, num_experts_per_tok=4)
    half = attention(config, bias=config.flag("qkv_bias", default=True), bias_flag="qkv_bias", output_bias=False)
    inner = config.count("moe_intermediate_size", default=1408)
    shared = config.count("shared_expert_intermediate_size", default=5632)
    mixture = replace(
        experts(
            config,
            config.count("num_experts", default=60),
            gated_mlp(config, prefix="mlp.experts.{expert}.", width=inner),
            renormalized=config.flag("norm_topk_prob", default=False),
        ),
        shared=gated_mlp(config, prefix="mlp.shared_expert.", width=shared),
        shared_gate=Projection("mlp.shared_expert_gate"),
    )
    dense = gated_mlp(config, width=config.count("intermediate_size", default=5632))
    skipped, step = config.numbers("mlp_only_layers"), config.count("decoder_sparse_step", default=1)

    def layer(number: int) -> Layer:
        sparse = number not in skipped and (number + 1) % step == 0
        return Layer(
            attention=half,
            mlp=mixture if sparse else dense,
            attention_norm=Norm("input_layernorm"),
            mlp_norm=Norm("post_attention_layernorm"),
        )

    return decoder(config, layer)


FAMILY = Family(("qwen2_moe",), qwen2_moe)
