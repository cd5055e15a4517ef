"""Mistral: Llama's blocks without biases, fewer key/value heads; its window of attention changes no dataflow."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def mistral(config: Config) -> Decoder:
    """No bias anywhere."""
    config = config.assuming(num_key_value_heads=8)
    layer = Layer(
        attention=attention(config),
        mlp=gated_mlp(config),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("mistral",), mistral)
