"""SmolLM3: Llama's blocks, some of them without rotary positions."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def smollm3(config: Config) -> Decoder:
    """`no_rope_layers` says 1 for a layer that has rotary positions, in spite of its name; null: not every fourth."""
    config = config.assuming(num_key_value_heads=4)
    layers = config.count("num_hidden_layers")
    interval = config.count("no_rope_layer_interval", default=4)
    listed = config.numbers("no_rope_layers") if config.has("no_rope_layers") else None
    if listed is not None and (len(listed) < layers or not set(listed) <= {0, 1}):
        raise Unreadable("no_rope_layers is not a list of a 0 or 1 for each layer")
    turned = attention(config, bias=config.flag("attention_bias", default=False), bias_flag="attention_bias")
    mlp = gated_mlp(config, bias=config.flag("mlp_bias", default=False), bias_flag="mlp_bias")

    def layer(number: int) -> Layer:
        turns = bool(listed[number]) if listed is not None else (number + 1) % interval != 0
        return Layer(
            attention=turned if turns else replace(turned, rotary=0),
            mlp=mlp,
            attention_norm=Norm("input_layernorm"),
            mlp_norm=Norm("post_attention_layernorm"),
        )

    return decoder(config, layer, tied=True)


FAMILY = Family(("smollm3",), smollm3)
