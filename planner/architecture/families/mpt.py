"""MPT: LayerNorm without a bias, positions as a slope on the scores (ALiBi), no bias anywhere."""

from __future__ import annotations

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Attention, Decoder, Fused, Layer, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import agreed, even_width, layer_norm

__all__ = ["FAMILY"]

_MULTIHEAD = "multihead_attention"


def mpt(config: Config) -> Decoder:
    """As transformers computes it: the MLP is four times as wide whatever `expansion_ratio` says."""
    inside = config.part("attn_config")
    for part, key in ((config, "no_bias"), (inside, "alibi")):
        if not part.flag(key, default=True):
            raise Unreadable(f"{key} is false; transformers does not read it, and the code it was written for does")
    if inside.flag("qk_ln", default=False) or inside.text("attn_type", default="multihead_attention") != _MULTIHEAD:
        raise Unreadable("attn_config asks for an attention that is not declared")
    hidden = agreed(config, "d_model", "hidden_size", default=2048)
    heads = agreed(config, "n_heads", "num_attention_heads", default=16)
    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=heads,
            width=even_width(config, hidden, heads),
            fused=Fused(Projection("attn.Wqkv"), "blocks"),
            output=Projection("attn.out_proj"),
            clip=inside.has("clip_qkv") and inside.number("clip_qkv") != 0,
        ),
        mlp=PlainMlp(
            width=4 * hidden, up=Projection("ffn.up_proj"), down=Projection("ffn.down_proj"), activation="gelu"
        ),
        attention_norm=layer_norm("norm_1", bias=False),
        mlp_norm=layer_norm("norm_2", bias=False),
    )
    return Decoder(
        width=hidden,
        vocabulary=config.count("vocab_size", default=50368),
        embedding="wte",
        layers=agreed(config, "n_layers", "num_hidden_layers", default=24),
        layer=lambda _: layer,
        blocks="blocks.{layer}",
        final_norm=layer_norm("norm_f", bias=False),
        head=Projection("lm_head"),
        tied=config.flag("tie_word_embeddings", default=True),
        prefixes=("transformer.", ""),
    )


FAMILY = Family(("mpt",), mpt)
