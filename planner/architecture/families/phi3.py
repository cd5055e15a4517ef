"""Phi 3 and 4: Llama's block with queries, keys and values in one projection, and gate and up in another."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Attention, Decoder, Fused, GatedMlp, Layer, Norm, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, decoder, head_width, rotated

__all__ = ["FAMILY"]


def phi3(config: Config) -> Decoder:
    """No map has a bias. The rows of qkv_proj are all queries, then all keys, then all values."""
    heads, width = config.count("num_attention_heads"), head_width(config)
    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=config.count("num_key_value_heads", default=heads),
            width=width,
            fused=Fused(Projection("self_attn.qkv_proj"), "blocks"),
            output=Projection("self_attn.o_proj"),
            rotary=rotated(width, config.rotary_part()),
        ),
        mlp=GatedMlp(
            width=config.count("intermediate_size"),
            gate=Projection("mlp.gate_up_proj"),
            up=None,
            down=Projection("mlp.down_proj"),
            activation=activation(config, "hidden_act", default="silu"),
        ),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("phi3",), phi3)
