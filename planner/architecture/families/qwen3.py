"""Qwen3: Llama's blocks with an RMSNorm on every query head and every key head."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def qwen3(config: Config) -> Decoder:
    """One weight of head size serves all the heads; `attention_bias` gives all four projections a bias."""
    config = config.assuming(num_key_value_heads=32, head_dim=128)
    layer = Layer(
        attention=attention(
            config,
            bias=config.flag("attention_bias", default=False),
            bias_flag="attention_bias",
            query_norm=Norm("self_attn.q_norm", over="head", weight="shared"),
            key_norm=Norm("self_attn.k_norm", over="head", weight="shared"),
        ),
        mlp=gated_mlp(config),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("qwen3",), qwen3)
