"""Gemma 3, the text model: Gemma 2's norms, and one on every query head and every key head."""

from __future__ import annotations

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder, Layer, Norm
from planner.architecture.families.family import Family
from planner.architecture.families.usual import attention, capped, decoder, gated_mlp

__all__ = ["FAMILY"]


def gemma3(config: Config) -> Decoder:
    """The logits are capped only where `final_logit_softcapping` is given."""
    config = config.assuming(num_key_value_heads=4, head_dim=256)
    layer = Layer(
        attention=attention(
            config,
            bias=config.flag("attention_bias", default=False),
            bias_flag="attention_bias",
            query_norm=Norm("self_attn.q_norm", one_plus=True, over="head", weight="shared"),
            key_norm=Norm("self_attn.k_norm", one_plus=True, over="head", weight="shared"),
        ),
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


FAMILY = Family(("gemma3_text",), gemma3)
