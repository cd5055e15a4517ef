"""StarCoder and SantaCoder: GPT-2's block with one key head for all queries, and matrices stored the usual way."""

from __future__ import annotations

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Attention, Decoder, Fused, Layer, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, agreed, even_width, layer_norm

__all__ = ["FAMILY"]


def gpt_bigcode(config: Config) -> Decoder:
    """`multi_query`: all queries, the key, the value; without it, for each head its query, its key, its value."""
    if config.flag("add_cross_attention", default=False):
        raise Unreadable("cross-attention (add_cross_attention) is not declared")
    hidden = agreed(config, "n_embd", "hidden_size", default=768)
    heads = agreed(config, "n_head", "num_attention_heads", default=12)
    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=1 if config.flag("multi_query", default=True) else heads,
            width=even_width(config, hidden, heads),
            fused=Fused(Projection("attn.c_attn", bias=True), "groups"),
            output=Projection("attn.c_proj", bias=True),
        ),
        mlp=PlainMlp(
            width=config.count("n_inner", default=4 * hidden),
            up=Projection("mlp.c_fc", bias=True),
            down=Projection("mlp.c_proj", bias=True),
            activation=activation(config, "activation_function", default="gelu_pytorch_tanh"),
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


FAMILY = Family(("gpt_bigcode",), gpt_bigcode)
