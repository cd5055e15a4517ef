"""BLOOM: a LayerNorm right after the embedding, positions as a slope on the scores (ALiBi), biases everywhere."""

from __future__ import annotations

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Attention, Decoder, Fused, Layer, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import agreed, even_width, layer_norm

__all__ = ["FAMILY"]


def bloom(config: Config) -> Decoder:
    """With `apply_residual_connection_post_layernorm` the sums take the normalisers' outputs, not their inputs."""
    if config.flag("slow_but_exact", default=False) and config.count("pretraining_tp", default=1) > 1:
        raise Unreadable("the slow but exact way (slow_but_exact) leaves two biases out, and is not declared")
    hidden = agreed(config, "hidden_size", "n_embed", default=64)
    heads = agreed(config, "n_head", "num_attention_heads", default=8)
    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=heads,
            width=even_width(config, hidden, heads),
            # For each head its query, its key, its value: groups of one query head.
            fused=Fused(Projection("self_attention.query_key_value", bias=True), "groups"),
            output=Projection("self_attention.dense", bias=True),
        ),
        mlp=PlainMlp(
            width=4 * hidden,
            up=Projection("mlp.dense_h_to_4h", bias=True),
            down=Projection("mlp.dense_4h_to_h", bias=True),
            activation="gelu",
        ),
        attention_norm=layer_norm("input_layernorm"),
        mlp_norm=layer_norm("post_attention_layernorm"),
        stream_from_norm=config.flag("apply_residual_connection_post_layernorm", default=False),
    )
    return Decoder(
        width=hidden,
        vocabulary=config.count("vocab_size", default=250880),
        embedding="word_embeddings",
        embedding_norm=layer_norm("word_embeddings_layernorm"),
        layers=agreed(config, "n_layer", "num_hidden_layers", default=2),
        layer=lambda _: layer,
        blocks="h.{layer}",
        final_norm=layer_norm("ln_f"),
        head=Projection("lm_head"),
        tied=config.flag("tie_word_embeddings", default=True),
        prefixes=("transformer.", ""),
    )


FAMILY = Family(("bloom",), bloom)
