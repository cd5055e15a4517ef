"""GPT-NeoX and Pythia: attention and MLP side by side, each under its own LayerNorm; partial rotary positions."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Attention, Decoder, Fused, Layer, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, even_width, layer_norm, rotated

__all__ = ["FAMILY"]


def gpt_neox(config: Config) -> Decoder:
    """`attention_bias` for the attention's two maps; the MLP's always have one. `use_parallel_residual` by default."""
    hidden, heads = config.count("hidden_size", default=6144), config.count("num_attention_heads", default=64)
    width = even_width(config, hidden, heads)
    bias = config.flag("attention_bias", default=True)
    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=heads,
            width=width,
            # For each head its query, its key, its value: groups of one query head.
            fused=Fused(Projection("attention.query_key_value", bias=bias, bias_flag="attention_bias"), "groups"),
            output=Projection("attention.dense", bias=bias, bias_flag="attention_bias"),
            rotary=rotated(width, config.rotary_part(default=0.25, key="rotary_pct")),
        ),
        mlp=PlainMlp(
            width=config.count("intermediate_size", default=24576),
            up=Projection("mlp.dense_h_to_4h", bias=True),
            down=Projection("mlp.dense_4h_to_h", bias=True),
            activation=activation(config, "hidden_act", default="gelu"),
        ),
        attention_norm=layer_norm("input_layernorm"),
        mlp_norm=layer_norm("post_attention_layernorm"),
        order="parallel" if config.flag("use_parallel_residual", default=True) else "sequential",
    )
    return Decoder(
        width=hidden,
        vocabulary=config.count("vocab_size", default=50432),
        embedding="embed_in",
        layers=config.count("num_hidden_layers", default=44),
        layer=lambda _: layer,
        blocks="layers.{layer}",
        final_norm=layer_norm("final_layer_norm"),
        head=Projection("embed_out"),
        head_names=("lm_head",),  # as transformers calls it in memory
        tied=config.flag("tie_word_embeddings", default=False),
        prefixes=("gpt_neox.", ""),
        unread=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    )


FAMILY = Family(("gpt_neox",), gpt_neox)
