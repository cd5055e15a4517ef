"""Gemma 2: a norm before and after each half, (1 + w) norms, and a cap on the logits."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, capped, decoder, gated_mlp

__all__ = ["FAMILY"]


def gemma2(config: Config) -> Decoder:
    """`post_attention_layernorm` acts on the attention's output here. The cap on the scores needs no step of its own.

    `final_logit_softcapping` is 30 where it is absent, and there is none where it is null.
    """
    config = config.assuming(num_key_value_heads=4, head_dim=256, final_logit_softcapping=30.0)
    layer = Layer(
        attention=attention(config, bias=config.flag("attention_bias", default=False), bias_flag="attention_bias"),
        mlp=gated_mlp(config, default="gelu_pytorch_tanh", activation_key="hidden_activation"),
        attention_norm=Norm("input_layernorm", one_plus=True),
        attention_post_norm=Norm("post_attention_layernorm", one_plus=True),
        mlp_norm=Norm("pre_feedforward_layernorm", one_plus=True),
        mlp_post_norm=Norm("post_feedforward_layernorm", one_plus=True),
    )
    return decoder(
        config,
        lambda _: layer,
        final_norm=Norm("norm", one_plus=True),
        tied=True,
        softcap=capped(config, "final_logit_softcapping"),
    )


FAMILY = Family(("gemma2",), gemma2)
