"""Arcee: Llama's blocks with a plain MLP and a squared relu."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, attention, decoder

__all__ = ["FAMILY"]


def arcee(config: Config) -> Decoder:
    """Biases by `attention_bias` (all four projections) and `mlp_bias` (both)."""
    bias = config.flag("mlp_bias", default=False)
    layer = Layer(
        attention=attention(config, bias=config.flag("attention_bias", default=False), bias_flag="attention_bias"),
        mlp=PlainMlp(
            width=config.count("intermediate_size"),
            up=Projection("mlp.up_proj", bias=bias, bias_flag="mlp_bias"),
            down=Projection("mlp.down_proj", bias=bias, bias_flag="mlp_bias"),
            activation=activation(config, "hidden_act", default="relu2"),
        ),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("arcee",), arcee)
