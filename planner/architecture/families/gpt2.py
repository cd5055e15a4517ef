"""GPT-2: matrices stored [inputs, outputs], learned positions, LayerNorm, biases everywhere."""

from __future__ import annotations

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Attention, Decoder, Fused, Layer, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, agreed, even_width, layer_norm

__all__ = ["FAMILY"]


def gpt2(config: Config) -> Decoder:
    """The attention's scale by layer or by head width is a number that no tensor holds, and changes nothing here."""
    if config.flag("add_cross_attention", default=False):
        raise Unreadable("cross-attention (add_cross_attention) is not declared")
    hidden = agreed(config, "n_embd", "hidden_size", default=768)
    heads = agreed(config, "n_head", "num_attention_heads", default=12)
    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=heads,
            width=even_width(config, hidden, heads),
            fused=Fused(_stored("attn.c_attn"), "blocks"),
            output=_stored("attn.c_proj"),
        ),
        mlp=PlainMlp(
            width=config.count("n_inner", default=4 * hidden),
            up=_stored("mlp.c_fc"),
            down=_stored("mlp.c_proj"),
            activation=activation(config, "activation_function", default="gelu_new"),
        ),
        attention_norm=layer_norm("ln_1"),
        mlp_norm=layer_norm("ln_2"),
    )
    return Decoder(
        width=hidden,
        vocabulary=config.count("vocab_size", default=50257),
        embedding="wte",
        positions="wpe",
        layers=agreed(config, "n_layer", "num_hidden_layers", default=12),
        layer=lambda _: layer,
        blocks="h.{layer}",
        final_norm=layer_norm("ln_f"),
        head=Projection("lm_head"),
        tied=config.flag("tie_word_embeddings", default=True),
        prefixes=("transformer.", ""),
        unread=("*.attn.bias", "*.attn.masked_bias"),
    )


def _stored(name: str) -> Projection:
    return Projection(name, bias=True, transposed=True)


FAMILY = Family(("gpt2",), gpt2)
