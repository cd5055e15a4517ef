"""StarCoder 2: LayerNorm, a plain MLP, biases everywhere by default; the head is the embedding by default."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, attention, decoder, layer_norm

__all__ = ["FAMILY"]


def starcoder2(config: Config) -> Decoder:
    """`use_bias` for every map of the blocks."""
    bias = config.flag("use_bias", default=True)
    mixer = attention(config, bias=bias, bias_flag="use_bias")
    layer = Layer(
        attention=replace(mixer, key_value_heads=config.count("num_key_value_heads", default=2)),
        mlp=PlainMlp(
            width=config.count("intermediate_size"),
            up=Projection("mlp.c_fc", bias=bias, bias_flag="use_bias"),
            down=Projection("mlp.c_proj", bias=bias, bias_flag="use_bias"),
            activation=activation(config, "hidden_act", default="gelu_pytorch_tanh"),
        ),
        attention_norm=layer_norm("input_layernorm"),
        mlp_norm=layer_norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer, final_norm=layer_norm("norm"), tied=True)


FAMILY = Family(("starcoder2",), starcoder2)
