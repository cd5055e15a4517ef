"""Command R7B and A: Command R's block; only the layers with a sliding window have rotary positions."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Decoder, Layer
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp, layer_norm

__all__ = ["FAMILY"]


def cohere2(config: Config) -> Decoder:
    """`attention_bias` for all four maps; `layer_types`, by default every fourth without a window."""
    bias = config.flag("attention_bias", default=False)
    turned = replace(attention(config, bias=bias, bias_flag="attention_bias"), pairing="neighbours")
    sliding = _sliding(config)
    if config.raw.get("sliding_window", 4096) is None:
        raise Unreadable("sliding_window is null, which transformers refuses")

    def layer(number: int) -> Layer:
        return Layer(
            attention=turned if sliding[number] else replace(turned, rotary=0),
            mlp=gated_mlp(config),
            attention_norm=layer_norm("input_layernorm", bias=False),
            order="parallel",
        )

    return decoder(config, layer, final_norm=layer_norm("norm", bias=False), tied=True)


def _sliding(config: Config) -> list[bool]:
    """For each layer whether its attention has a window."""
    layers = config.count("num_hidden_layers")
    types = config.raw.get("layer_types")
    if types is None:
        pattern = config.count("sliding_window_pattern", default=4)
        return [bool((number + 1) % pattern) for number in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise Unreadable(f"layer_types is not a list of {layers}")
    if not all(isinstance(one, str) and one in {"sliding_attention", "full_attention"} for one in types):
        raise Unreadable("layer_types holds a type that is not declared")
    return [one == "sliding_attention" for one in types]


FAMILY = Family(("cohere2",), cohere2)
