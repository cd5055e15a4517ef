"""Helium: Llama's blocks, rotating neighbouring channels; the attention's output has no bias."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def helium(config: Config) -> Decoder:
    """Biases by `attention_bias` (queries, keys, values) and `mlp_bias` (all three)."""
    config = config.assuming(num_key_value_heads=20, head_dim=128)
    bias = config.flag("attention_bias", default=False)
    half = attention(config, bias=bias, bias_flag="attention_bias", output_bias=False)
    layer = Layer(
        attention=replace(half, pairing="neighbours"),
        mlp=gated_mlp(config, bias=config.flag("mlp_bias", default=False), bias_flag="mlp_bias"),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("helium",), helium)
