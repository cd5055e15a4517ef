"""Qwen3 with a mixture of experts in some layers, stored expert by expert."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import agreed, attention, decoder, experts, gated_mlp

__all__ = ["FAMILY"]


def qwen3_moe(config: Config) -> Decoder:
    """A layer is dense if `mlp_only_layers` names it, or if `decoder_sparse_step` passes over it."""
    config = config.assuming(num_key_value_heads=4, num_experts_per_tok=8)
    half = attention(
        config,
        bias=config.flag("attention_bias", default=False),
        bias_flag="attention_bias",
        query_norm=Norm("self_attn.q_norm", over="head", weight="shared"),
        key_norm=Norm("self_attn.k_norm", over="head", weight="shared"),
    )
    inner = config.count("moe_intermediate_size", default=768)
    mixture = experts(
        config,
        agreed(config, "num_experts", "num_local_experts", default=128),
        gated_mlp(config, prefix="mlp.experts.{expert}.", width=inner),
        renormalized=config.flag("norm_topk_prob", default=False),
    )
    dense = gated_mlp(config, width=config.count("intermediate_size", default=6144))
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


FAMILY = Family(("qwen3_moe",), qwen3_moe)
