"""OLMo 2 and 3: a norm of each half's output and none of its input; queries and keys are normed over all heads."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, decoder, gated_mlp

__all__ = ["FAMILY"]


def olmo2(config: Config) -> Decoder:
    """`attention_bias` gives all four projections a bias. OLMo 3 differs by windows of attention only."""
    layer = Layer(
        attention=attention(
            config,
            bias=config.flag("attention_bias", default=False),
            bias_flag="attention_bias",
            query_norm=Norm("self_attn.q_norm"),
            key_norm=Norm("self_attn.k_norm"),
        ),
        mlp=gated_mlp(config),
        attention_post_norm=Norm("post_attention_layernorm"),
        mlp_post_norm=Norm("post_feedforward_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("olmo2", "olmo3"), olmo2)
