"""Seed-OSS: Llama's blocks, with a bias on queries, keys and values unless the configuration says otherwise."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def seed_oss(config: Config) -> Decoder:
    """Biases by `attention_bias` (queries, keys, values), `attention_out_bias` (output) and `mlp_bias` (all three)."""
    config = config.assuming(num_key_value_heads=8, head_dim=128)
    layer = Layer(
        attention=attention(
            config,
            bias=config.flag("attention_bias", default=True),
            bias_flag="attention_bias",
            output_bias=config.flag("attention_out_bias", default=False),
            output_flag="attention_out_bias",
        ),
        mlp=gated_mlp(config, bias=config.flag("mlp_bias", default=False), bias_flag="mlp_bias"),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("seed_oss",), seed_oss)
