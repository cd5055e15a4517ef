"""ERNIE 4.5, dense: Llama's blocks, rotating neighbouring channels, with a tied head."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def ernie4_5(config: Config) -> Decoder:
    """`use_bias` gives every projection a bias."""
    config = config.assuming(num_key_value_heads=2, head_dim=128)
    bias = config.flag("use_bias", default=False)
    layer = Layer(
        attention=replace(attention(config, bias=bias, bias_flag="use_bias"), pairing="neighbours"),
        mlp=gated_mlp(config, bias=bias, bias_flag="use_bias"),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer, tied=True)


FAMILY = Family(("ernie4_5",), ernie4_5)
