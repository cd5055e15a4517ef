"""OPT: learned positions, LayerNorm, a ReLU MLP; the 350M model norms after each sum and embeds in fewer channels."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Attention, Decoder, Layer, Norm, PlainMlp, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import activation, even_width, layer_norm

__all__ = ["FAMILY"]


def opt(config: Config) -> Decoder:
    """`enable_bias` for every map of the blocks; `layer_norm_elementwise_affine` for what the normalisers hold."""
    hidden, heads = config.count("hidden_size", default=768), config.count("num_attention_heads", default=12)
    bias = config.flag("enable_bias", default=True)
    affine = config.flag("layer_norm_elementwise_affine", default=True)
    before = config.flag("do_layer_norm_before", default=True)
    embedded = config.count("word_embed_proj_dim", default=hidden)

    def projection(name: str) -> Projection:
        return Projection(name, bias=bias, bias_flag="enable_bias")

    def norm(name: str) -> Norm:
        return layer_norm(name) if affine else Norm(None, kind="layer")

    layer = Layer(
        attention=Attention(
            heads=heads,
            key_value_heads=heads,
            width=even_width(config, hidden, heads),
            query=projection("self_attn.q_proj"),
            key=projection("self_attn.k_proj"),
            value=projection("self_attn.v_proj"),
            output=projection("self_attn.out_proj"),
        ),
        mlp=PlainMlp(
            width=config.count("ffn_dim", default=3072),
            up=projection("fc1"),
            down=projection("fc2"),
            activation=activation(config, "activation_function", default="relu"),
        ),
        attention_norm=norm("self_attn_layer_norm"),
        mlp_norm=norm("final_layer_norm"),
        order="sequential" if before else "after",
    )
    narrow = embedded != hidden
    return Decoder(
        width=hidden,
        vocabulary=config.count("vocab_size", default=50272),
        embedding="embed_tokens",
        embedding_width=embedded,
        embedding_projection=Projection("project_in") if narrow else None,
        output_projection=Projection("project_out") if narrow else None,
        positions="embed_positions",
        layers=config.count("num_hidden_layers", default=12),
        layer=lambda _: layer,
        blocks="layers.{layer}",
        final_norm=(
            norm("final_layer_norm") if before and not config.flag("_remove_final_layer_norm", default=False) else None
        ),
        head=Projection("lm_head"),
        tied=config.flag("tie_word_embeddings", default=True),
        prefixes=("model.decoder.", "decoder.", ""),
    )


FAMILY = Family(("opt",), opt)
