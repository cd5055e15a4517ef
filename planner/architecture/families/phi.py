"""Phi 1, 1.5 and 2: attention and MLP side by side under one LayerNorm, a bias on every map."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, attention, decoder, layer_norm

__all__ = ["FAMILY"]


def phi(config: Config) -> Decoder:
    """`qk_layernorm` adds a LayerNorm with a bias to every query and key head, one for all heads."""
    query_norm = key_norm = None
    if config.flag("qk_layernorm", default=False):
        query_norm, key_norm = _over_heads("self_attn.q_layernorm"), _over_heads("self_attn.k_layernorm")
    mixer = attention(
        config, bias=True, rotary=config.rotary_part(default=0.5), query_norm=query_norm, key_norm=key_norm
    )
    layer = Layer(
        attention=replace(mixer, output=Projection("self_attn.dense", bias=True)),
        mlp=PlainMlp(
            width=config.count("intermediate_size"),
            up=Projection("mlp.fc1", bias=True),
            down=Projection("mlp.fc2", bias=True),
            activation=activation(config, "hidden_act", default="gelu_new"),
        ),
        attention_norm=layer_norm("input_layernorm"),
        order="parallel",
    )
    return decoder(config, lambda _: layer, final_norm=layer_norm("final_layernorm"), head_bias=True)


def _over_heads(name: str) -> Norm:
    return Norm(name, kind="layer", bias=True, over="head", weight="shared")


FAMILY = Family(("phi",), phi)
