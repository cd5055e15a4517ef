"""Qwen2: Llama's blocks with a bias on queries, keys and values."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def qwen2(config: Config) -> Decoder:
    """The biases are there whatever the configuration says; the output projection has none."""
    config = config.assuming(num_key_value_heads=32)
    layer = Layer(
        attention=attention(config, bias=True, output_bias=False),
        mlp=gated_mlp(config),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("qwen2",), qwen2)
