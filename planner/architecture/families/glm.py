"""GLM 4 (the first models): Llama's block, gate and up in one projection, half of each head rotated."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, GatedMlp, Layer, Norm, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, attention, decoder, rotated

__all__ = ["FAMILY", "block"]


def block(config: Config) -> Layer:
    """`attention_bias` for queries, keys and values; neighbouring channels rotate."""
    width = config.count("head_dim", default=128)
    part = config.rotary_part(default=0.5)
    bias = config.flag("attention_bias", default=True)
    mixer = attention(config, bias=bias, bias_flag="attention_bias", output_bias=False, rotary=part)
    return Layer(
        attention=replace(
            mixer,
            width=width,
            key_value_heads=config.count("num_key_value_heads", default=2),
            rotary=rotated(width, part),
            pairing="neighbours",
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


def glm(config: Config) -> Decoder:
    """The block above, and nothing else."""
    layer = block(config)
    return decoder(config, lambda _: layer)


FAMILY = Family(("glm",), glm)
