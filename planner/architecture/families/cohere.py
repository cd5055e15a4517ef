"""Command R: attention and gated MLP side by side under one LayerNorm without a bias; neighbouring channels rotate."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp, layer_norm

__all__ = ["FAMILY"]


def cohere(config: Config) -> Decoder:
    """`attention_bias` for all four maps; `use_qk_norm` norms each query and key head with a weight of its own."""
    query_norm = key_norm = None
    if config.flag("use_qk_norm", default=False):
        query_norm, key_norm = _each_head("self_attn.q_norm"), _each_head("self_attn.k_norm")
    bias = config.flag("attention_bias", default=False)
    mixer = attention(config, bias=bias, bias_flag="attention_bias", query_norm=query_norm, key_norm=key_norm)
    layer = Layer(
        attention=replace(mixer, pairing="neighbours"),
        mlp=gated_mlp(config),
        attention_norm=layer_norm("input_layernorm", bias=False),
        order="parallel",
    )
    return decoder(config, lambda _: layer, final_norm=layer_norm("norm", bias=False), tied=True)


def _each_head(name: str) -> Norm:
    return Norm(name, kind="layer", over="head", weight="full")


FAMILY = Family(("cohere",), cohere)
