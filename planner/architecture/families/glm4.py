"""GLM 4 (the 0414 models): an RMSNorm before and after each half, gate and up in one projection."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.glm import block
from planner.architecture.families.usual import decoder

__all__ = ["FAMILY"]


def glm4(config: Config) -> Decoder:
    """GLM's block with `post_self_attn_layernorm` and `post_mlp_layernorm` before the sums."""
    layer = replace(
        block(config),
        attention_post_norm=Norm("post_self_attn_layernorm"),
        mlp_post_norm=Norm("post_mlp_layernorm"),
    )
    return decoder(config, lambda _: layer)


FAMILY = Family(("glm4",), glm4)
