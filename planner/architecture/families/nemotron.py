"""Nemotron and Minitron: LayerNorm whose stored weight w acts as 1 + w, a plain MLP of squared ReLU."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, attention, decoder, layer_norm

__all__ = ["FAMILY"]


def nemotron(config: Config) -> Decoder:
    """`attention_bias` for the attention's four maps, `mlp_bias` for the MLP's two; half of each head is rotated."""
    mlp_bias = config.flag("mlp_bias", default=False)
    layer = Layer(
        attention=attention(
            config,
            bias=config.flag("attention_bias", default=False),
            bias_flag="attention_bias",
            rotary=config.rotary_part(default=0.5),
        ),
        mlp=PlainMlp(
            width=config.count("intermediate_size"),
            up=Projection("mlp.up_proj", bias=mlp_bias, bias_flag="mlp_bias"),
            down=Projection("mlp.down_proj", bias=mlp_bias, bias_flag="mlp_bias"),
            activation=activation(config, "hidden_act", default="relu2"),
        ),
        attention_norm=layer_norm("input_layernorm", one_plus=True),
        mlp_norm=layer_norm("post_attention_layernorm", one_plus=True),
    )
    return decoder(config, lambda _: layer, final_norm=layer_norm("norm", one_plus=True))


FAMILY = Family(("nemotron",), nemotron)
