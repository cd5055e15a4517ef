"""Gemma: Llama's blocks with RMSNorms that store w of (1 + w), a gelu, and a tied head."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def gemma(config: Config) -> Decoder:
    """The embedding is multiplied by a constant; `attention_bias` gives all four projections a bias."""
    config = config.assuming(num_key_value_heads=16, head_dim=256)
    layer = Layer(
        attention=attention(config, bias=config.flag("attention_bias", default=False), bias_flag="attention_bias"),
        mlp=gated_mlp(config, default="gelu_pytorch_tanh"),
        attention_norm=Norm("input_layernorm", one_plus=True),
        mlp_norm=Norm("post_attention_layernorm", one_plus=True),
    )
    return decoder(config, lambda _: layer, final_norm=Norm("norm", one_plus=True), tied=True)


FAMILY = Family(("gemma",), gemma)
