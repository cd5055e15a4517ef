"""Persimmon: a LayerNorm with a bias on every query and key head, a plain MLP of squared ReLU, biases everywhere."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Attention, Decoder, Fused, Layer, Norm, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, decoder, even_width, layer_norm, rotated

__all__ = ["FAMILY"]


def persimmon(config: Config) -> Decoder:
    """`qk_layernorm` by default; half of each head is rotated."""
    heads = config.count("num_attention_heads")
    width = even_width(config, config.count("hidden_size"), heads)
    normed = config.flag("qk_layernorm", default=True)
    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=heads,
            width=width,
            # For each head its query, its key, its value: groups of one query head.
            fused=Fused(Projection("self_attn.query_key_value", bias=True), "groups"),
            output=Projection("self_attn.dense", bias=True),
            query_norm=_over_heads("self_attn.q_layernorm") if normed else None,
            key_norm=_over_heads("self_attn.k_layernorm") if normed else None,
            rotary=rotated(width, config.rotary_part(default=0.5)),
        ),
        mlp=PlainMlp(
            width=config.count("intermediate_size"),
            up=Projection("mlp.dense_h_to_4h", bias=True),
            down=Projection("mlp.dense_4h_to_h", bias=True),
            activation=activation(config, "hidden_act", default="relu2"),
        ),
        attention_norm=layer_norm("input_layernorm"),
        mlp_norm=layer_norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer, final_norm=layer_norm("final_layernorm"))


def _over_heads(name: str) -> Norm:
    return Norm(name, kind="layer", bias=True, over="head", weight="shared")


FAMILY = Family(("persimmon",), persimmon)
