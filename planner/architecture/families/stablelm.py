"""StableLM: LayerNorm with a bias, a gated MLP, a quarter of each head rotated."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, even_width, gated_mlp, layer_norm

__all__ = ["FAMILY"]


def stablelm(config: Config) -> Decoder:
    """`use_qkv_bias` for queries, keys and values; `qk_layernorm` gives each of their heads a normaliser of its own.

    With `use_parallel_residual` the MLP reads the attention's normaliser, and has none.
    """
    even_width(config, config.count("hidden_size"), config.count("num_attention_heads"))
    query_norm = key_norm = None
    if config.flag("qk_layernorm", default=False):
        query_norm, key_norm = _each_head("self_attn.q_layernorm"), _each_head("self_attn.k_layernorm")
    mixer = attention(
        config,
        bias=config.flag("use_qkv_bias", default=False),
        bias_flag="use_qkv_bias",
        output_bias=False,
        rotary=config.rotary_part(default=0.25),
        query_norm=query_norm,
        key_norm=key_norm,
    )
    parallel = config.flag("use_parallel_residual", default=False)
    layer = Layer(
        attention=replace(mixer, key_value_heads=config.count("num_key_value_heads", default=32)),
        mlp=gated_mlp(config),
        attention_norm=layer_norm("input_layernorm"),
        mlp_norm=None if parallel else layer_norm("post_attention_layernorm"),
        order="parallel" if parallel else "sequential",
    )
    return decoder(config, lambda _: layer, final_norm=layer_norm("norm"))


def _each_head(name: str) -> Norm:
    return Norm(name + ".norms.{head}", kind="layer", over="head")


FAMILY = Family(("stablelm",), stablelm)
