"""GPT-J: attention and MLP side by side under one LayerNorm, neighbouring channels rotated, a bias on the head."""

from __future__ import annotations

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Attention, Decoder, Layer, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, agreed, even_width, layer_norm

__all__ = ["FAMILY"]


def gptj(config: Config) -> Decoder:
    """The attention's maps have no bias, the MLP's have; `rotary_dim` channels of each head are rotated."""
    hidden = agreed(config, "n_embd", "hidden_size", default=4096)
    heads = agreed(config, "n_head", "num_attention_heads", default=16)
    width = even_width(config, hidden, heads)
    if "rotary_dim" in config.raw and not config.has("rotary_dim"):
        raise Unreadable("rotary_dim is null, which is not declared")
    rotary = config.count("rotary_dim", default=64)
    if rotary > width:
        raise Unreadable(f"rotary_dim is {rotary}; a head has {width} channels")
    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=heads,
            width=width,
            query=Projection("attn.q_proj"),
            key=Projection("attn.k_proj"),
            value=Projection("attn.v_proj"),
            output=Projection("attn.out_proj"),
            rotary=rotary,
            pairing="neighbours",
        ),
        mlp=PlainMlp(
            width=config.count("n_inner", default=4 * hidden),
            up=Projection("mlp.fc_in", bias=True),
            down=Projection("mlp.fc_out", bias=True),
            activation=activation(config, "activation_function", default="gelu_new"),
        ),
        attention_norm=layer_norm("ln_1"),
        order="parallel",
    )
    return Decoder(
        width=hidden,
        vocabulary=config.count("vocab_size", default=50400),
        embedding="wte",
        layers=agreed(config, "n_layer", "num_hidden_layers", default=28),
        layer=lambda _: layer,
        blocks="h.{layer}",
        final_norm=layer_norm("ln_f"),
        head=Projection("lm_head", bias=True),
        tied=config.flag("tie_word_embeddings", default=False),
        prefixes=("transformer.", ""),
        unread=("*.attn.bias", "*.attn.masked_bias"),
    )


FAMILY = Family(("gptj",), gptj)
