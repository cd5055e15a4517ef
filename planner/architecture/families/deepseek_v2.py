"""DeepSeek V2: latent attention, dense layers first, then experts with shared ones beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Decoder, Experts, GatedMlp, LatentAttention, Layer, Norm, Projection
from planner.architecture.families.family import Family
from planner.architecture.families.usual import agreed, decoder, experts, gated_mlp, wholly_rotated

__all__ = ["FAMILY", "grouped", "latent_layers", "routed", "said"]


def deepseek_v2(config: Config) -> Decoder:
    """The router is a softmax whose chosen weights are not renormalised: transformers reads no `norm_topk_prob` here.

    `mlp_bias` is for the dense and the shared MLPs; the experts have none.
    """
    config = config.assuming(
        n_shared_experts=2, q_lora_rank=1536, moe_intermediate_size=1407, topk_method="greedy", first_k_dense_replace=0
    )
    count = agreed(config, "n_routed_experts", "num_experts", default=64)
    method = config.text("topk_method")
    if method == "group_limited_greedy":
        grouped(config, count)
    elif method != "greedy":
        raise Unreadable(f"there is no way {method!r} to choose experts")
    said(config, "scoring_func", "softmax")
    bias = config.flag("mlp_bias", default=False)
    shared_width = config.count("moe_intermediate_size") * config.count("n_shared_experts")
    mixture = replace(
        routed(config, count, scoring="softmax", renormalized=False),
        shared=gated_mlp(config, prefix="mlp.shared_experts.", bias=bias, bias_flag="mlp_bias", width=shared_width),
    )
    dense = gated_mlp(config, bias=bias, bias_flag="mlp_bias")
    return decoder(config, latent_layers(config, dense, mixture, "neighbours"))


def routed(config: Config, count: int, *, scoring: Literal["softmax", "sigmoid"], renormalized: bool) -> Experts:
    """The experts that the router chooses from, stored one by one."""
    said(config, "moe_layer_freq", 1)
    expert = gated_mlp(config, prefix="mlp.experts.{expert}.", width=config.count("moe_intermediate_size"))
    return experts(config, count, expert, scoring=scoring, renormalized=renormalized)


def grouped(config: Config, count: int) -> None:
    """Raise `Unreadable` unless the experts come in groups of equal size, from some of which a token's are chosen."""
    groups = config.count("n_group")
    if count % groups or config.count("topk_group") > groups:
        raise Unreadable(f"{count} experts do not come in {groups} groups to choose from")


def said(config: Config, key: str, value: object) -> None:
    """Raise `Unreadable` where a key that only other loaders read asks for something else than the code does."""
    if config.has(key) and config.raw[key] != value:
        raise Unreadable(f"{key} is not {value!r}")


def latent_layers(
    config: Config, dense: GatedMlp, mixture: Experts, pairing: Literal["halves", "neighbours"]
) -> Callable[[int], Layer]:
    """The blocks: `first_k_dense_replace` dense ones, then those with experts."""
    half = _attention(config, pairing)
    first = config.number("first_k_dense_replace")

    def layer(number: int) -> Layer:
        return Layer(
            attention=half,
            mlp=mixture if number >= first else dense,
            attention_norm=Norm("input_layernorm"),
            mlp_norm=Norm("post_attention_layernorm"),
        )

    return layer


def _attention(config: Config, pairing: Literal["halves", "neighbours"]) -> LatentAttention:
    """`attention_bias` is for the maps that read the stream to a low rank, and for the output."""
    wholly_rotated(config)
    heads = config.count("num_attention_heads")
    if config.count("num_key_value_heads", default=heads) != heads:
        raise Unreadable("num_key_value_heads is not the number of heads, which latent attention needs")
    bias = config.flag("attention_bias", default=False)

    def biased(name: str) -> Projection:
        return Projection(f"self_attn.{name}", bias=bias, bias_flag="attention_bias")

    spec = LatentAttention(
        heads=heads,
        plain=config.count("qk_nope_head_dim", default=128),
        rotary=config.count("qk_rope_head_dim", default=64),
        value_width=config.count("v_head_dim", default=128),
        latent=config.count("kv_lora_rank", default=512),
        key_value_down=biased("kv_a_proj_with_mqa"),
        key_value_norm=Norm("self_attn.kv_a_layernorm"),
        key_value_up=Projection("self_attn.kv_b_proj"),
        output=biased("o_proj"),
        pairing=pairing,
    )
    if not config.has("q_lora_rank"):
        return replace(spec, query=Projection("self_attn.q_proj"))
    return replace(
        spec,
        query_rank=config.count("q_lora_rank"),
        query_down=biased("q_a_proj"),
        query_norm=Norm("self_attn.q_a_layernorm"),
        query_up=Projection("self_attn.q_b_proj"),
    )


FAMILY = Family(("deepseek_v2",), deepseek_v2)
