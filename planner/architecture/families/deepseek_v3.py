"""DeepSeek V3 and R1: V2 with a router that is a sigmoid, and a bias that takes part in the choice of experts only."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from planner.architecture.config import Config, Unreadable
from planner.architecture.decoder import Decoder
from planner.architecture.families.deepseek_v2 import grouped, latent_layers, routed, said
from planner.architecture.families.family import Family
from planner.architecture.families.usual import agreed, decoder, gated_mlp

__all__ = ["FAMILY"]

_MOST_EXTRA = 64


def deepseek_v3(config: Config) -> Decoder:
    """Rotated channels are neighbours unless `rope_interleave` is false. Layers after the last predict more tokens."""
    config = config.assuming(
        n_shared_experts=1,
        q_lora_rank=1536,
        moe_intermediate_size=2048,
        num_experts_per_tok=8,
        num_key_value_heads=128,
        n_group=8,
        topk_group=4,
        norm_topk_prob=True,
        first_k_dense_replace=3,
        rope_interleave=True,
    )
    count = agreed(config, "n_routed_experts", "num_local_experts", default=256)
    grouped(config, count)
    if count < 2 * config.count("n_group"):
        raise Unreadable("a group holds fewer than two experts, by whose scores it is chosen")
    said(config, "scoring_func", "sigmoid")
    said(config, "topk_method", "noaux_tc")
    renormalized = config.flag("norm_topk_prob", default=False)
    shared_width = config.count("moe_intermediate_size") * config.count("n_shared_experts")
    mixture = replace(
        routed(config, count, scoring="sigmoid", renormalized=renormalized),
        correction="mlp.gate.e_score_correction_bias",
        shared=gated_mlp(config, prefix="mlp.shared_experts.", width=shared_width),
    )
    interleaved = config.flag("rope_interleave", default=False)
    pairing: Literal["halves", "neighbours"] = "neighbours" if interleaved else "halves"
    return decoder(
        config, latent_layers(config, gated_mlp(config), mixture, pairing), read_elsewhere=_extra_layers(config)
    )


def _extra_layers(config: Config) -> tuple[str, ...]:
    """Patterns of the layers that follow the last."""
    extra = config.number("num_nextn_predict_layers", "num_mtp_layers", default=1)
    if not 0 <= extra <= _MOST_EXTRA:
        raise Unreadable("the number of layers that predict more tokens is out of range")
    last = config.count("num_hidden_layers")
    return tuple(f"{prefix}layers.{last + n}.*" for n in range(int(extra)) for prefix in ("model.", ""))


FAMILY = Family(("deepseek_v3",), deepseek_v3)
