"""Llama, and what is built like it: RMSNorm before each half, rotary positions, a gated MLP."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def llama(config: Config) -> Decoder:
    """Biases by `attention_bias` (all four projections) and `mlp_bias` (all three)."""
    layer = Layer(
        attention=attention(config, bias=config.flag("attention_bias", default=False), bias_flag="attention_bias"),
        mlp=gated_mlp(config, bias=config.flag("mlp_bias", default=False), bias_flag="mlp_bias"),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("llama",), llama)
