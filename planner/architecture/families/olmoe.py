"""OLMoE: experts in every layer; queries and keys are normed over all heads, and then perhaps clipped."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import agreed, attention, capped, decoder, experts, gated_mlp

__all__ = ["FAMILY"]


def olmoe(config: Config) -> Decoder:
    """`clip_qkv` limits queries and keys after their norms, and values; `attention_bias` gives four biases."""
    config = config.assuming(num_experts_per_tok=8)
    half = attention(
        config,
        bias=config.flag("attention_bias", default=False),
        bias_flag="attention_bias",
        query_norm=Norm("self_attn.q_norm"),
        key_norm=Norm("self_attn.k_norm"),
    )
    mixture = experts(
        config,
        agreed(config, "num_experts", "num_local_experts", default=64),
        gated_mlp(config, prefix="mlp.experts.{expert}."),
        renormalized=config.flag("norm_topk_prob", default=False),
    )
    layer = Layer(
        attention=replace(half, clip=capped(config, "clip_qkv"), clip_after_norm=True),
        mlp=mixture,
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("olmoe",), olmoe)
