"""OLMo: Llama's blocks under LayerNorms that have neither weight nor bias."""

from __future__ import annotations

from dataclasses import replace

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, capped, decoder, gated_mlp

__all__ = ["FAMILY"]


def olmo(config: Config) -> Decoder:
    """`clip_qkv` limits queries, keys and values; `attention_bias` gives all four projections a bias."""
    half = attention(config, bias=config.flag("attention_bias", default=False), bias_flag="attention_bias")
    plain = Norm(None, kind="layer")
    layer = Layer(
        attention=replace(half, clip=capped(config, "clip_qkv")),
        mlp=gated_mlp(config),
        attention_norm=plain,
        mlp_norm=plain,
    )
    return decoder(config, lambda _: layer, final_norm=plain)


FAMILY = Family(("olmo",), olmo)
