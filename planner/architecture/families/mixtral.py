"""Mixtral: Mistral with a mixture of experts, stored one by one as w1 (gate), w3 (up) and w2 (down)."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import agreed, attention, decoder, experts, gated_mlp

__all__ = ["FAMILY"]


def mixtral(config: Config) -> Decoder:
    """The weights of the chosen experts always sum to one."""
    config = config.assuming(num_key_value_heads=8, num_experts_per_tok=2)
    count = agreed(config, "num_local_experts", "num_experts", default=8)
    expert = gated_mlp(config, prefix="block_sparse_moe.experts.{expert}.", names=("w1", "w3", "w2"))
    layer = Layer(
        attention=attention(config),
        mlp=experts(config, count, expert, router="block_sparse_moe.gate", renormalized=True),
        attention_norm=Norm("input_layernorm"),
        mlp_norm=Norm("post_attention_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("mixtral",), mixtral)
