"""Falcon: the 7B, 40B and RW designs, which differ in key heads, normalisers, biases and positions."""

from __future__ import annotations

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Attention, Decoder, Fused, Layer, Norm, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, agreed, even_width, layer_norm, wholly_rotated

__all__ = ["FAMILY"]


def falcon(config: Config) -> Decoder:
    """`new_decoder_architecture`, `multi_query`, `parallel_attn`, `num_ln_in_parallel_attn`, `alibi` and `bias`."""
    hidden = agreed(config, "hidden_size", "n_embed", default=4544)
    heads = config.count("num_attention_heads", default=71)
    width = even_width(config, hidden, heads)
    bias = _flag(config, "bias", default=False)
    alibi = _flag(config, "alibi", default=False)
    if not alibi:
        wholly_rotated(config)
    attention_norm, mlp_norm = _norms(config)

    def projection(name: str) -> Projection:
        return Projection(name, bias=bias, bias_flag="bias")

    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=_key_value_heads(config, heads),
            width=width,
            fused=Fused(projection("self_attention.query_key_value"), "groups"),
            output=projection("self_attention.dense"),
            rotary=0 if alibi else width,
        ),
        mlp=PlainMlp(
            width=config.count("ffn_hidden_size", default=4 * hidden),
            up=projection("mlp.dense_h_to_4h"),
            down=projection("mlp.dense_4h_to_h"),
            activation=activation(config, "activation", default="gelu"),
        ),
        attention_norm=attention_norm,
        mlp_norm=mlp_norm,
        order="parallel" if _flag(config, "parallel_attn", default=True) else "sequential",
    )
    return Decoder(
        width=hidden,
        vocabulary=config.count("vocab_size", default=65024),
        embedding="word_embeddings",
        layers=config.count("num_hidden_layers", default=32),
        layer=lambda _: layer,
        blocks="h.{layer}",
        final_norm=layer_norm("ln_f"),
        head=Projection("lm_head"),
        tied=config.flag("tie_word_embeddings", default=True),
        prefixes=("transformer.", ""),
        unread=("*.rotary_emb.inv_freq", "*.maybe_rotary.inv_freq"),
    )


def _key_value_heads(config: Config, heads: int) -> int:
    given = config.count("num_kv_heads", default=heads)
    if _flag(config, "new_decoder_architecture", default=False):
        return given
    if _flag(config, "multi_query", default=True):
        return 1
    if given != heads:
        raise Unreadable("num_kv_heads counts in the new decoder architecture only")
    return heads


def _norms(config: Config) -> tuple[Norm, Norm | None]:
    """Of the attention and of the MLP; None for the MLP where it reads the attention's."""
    new = _flag(config, "new_decoder_architecture", default=False)
    count = config.count("num_ln_in_parallel_attn", default=2 if new else 1)
    if not _flag(config, "parallel_attn", default=True):
        if new:
            raise Unreadable("the new decoder architecture without parallel_attn is not declared")
        return layer_norm("input_layernorm"), layer_norm("post_attention_layernorm")
    if count == 1 or (not new and count != 2):
        return layer_norm("input_layernorm"), None
    if new and count == 2:
        return layer_norm("ln_attn"), layer_norm("ln_mlp")
    raise Unreadable(f"{count} normalisers (num_ln_in_parallel_attn) are not declared")


def _flag(config: Config, key: str, *, default: bool) -> bool:
    """A flag for which null is allowed, and means false."""
    return config.flag(key, default=default if key not in config.raw else False)


FAMILY = Family(("falcon",), falcon)
