"""Checkpoints for pictures, made of profiles alone: no bytes, so that 18,000 tensors take no time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

from planner.analysts.aliases import Aliases
from planner.analysts.base import Brief
from planner.analysts.picture import Picture, picture_of
from planner.architecture import map_of, role_of
from planner.checkpoint import Checkpoint
from planner.plan import Policy
from planner.profile import Profile, TensorProfile
from planner.profile.findings import findings_of

__all__ = ["MOE", "QWEN3", "brief_of", "moe_shapes", "pictured", "profile_of", "qwen3_shapes", "tensor"]

Shapes = dict[str, tuple[int, ...]]

QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 28,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": 256,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


def qwen3_shapes(config: Mapping[str, Any] = QWEN3) -> Shapes:
    """The tensors of Qwen3-0.6B, all 311 of them with the copy of the head, at small sizes."""
    hidden, width = config["hidden_size"], config["head_dim"]
    query, value, inner = (
        config["num_attention_heads"] * width,
        config["num_key_value_heads"] * width,
        config["intermediate_size"],
    )
    found: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    found["lm_head.weight"] = found["model.embed_tokens.weight"]
    for layer in range(config["num_hidden_layers"]):
        begin = f"model.layers.{layer}."
        found |= _attention(begin, hidden, query, value, width)
        found |= {
            f"{begin}mlp.gate_proj.weight": (inner, hidden),
            f"{begin}mlp.up_proj.weight": (inner, hidden),
            f"{begin}mlp.down_proj.weight": (hidden, inner),
        }
    return found | {"model.norm.weight": (hidden,)}


def moe_shapes(config: Mapping[str, Any] = MOE) -> Shapes:
    """The tensors of a Qwen3 mixture of experts: 18,432 of experts, and 435 others."""
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    width = config["head_dim"]
    query, value = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    found: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        begin = f"model.layers.{layer}."
        found |= _attention(begin, hidden, query, value, width)
        found[f"{begin}mlp.gate.weight"] = (config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            found |= {
                f"{begin}mlp.experts.{expert}.gate_proj.weight": (inner, hidden),
                f"{begin}mlp.experts.{expert}.up_proj.weight": (inner, hidden),
                f"{begin}mlp.experts.{expert}.down_proj.weight": (hidden, inner),
            }
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def _attention(begin: str, hidden: int, query: int, value: int, width: int) -> Shapes:
    return {
        f"{begin}input_layernorm.weight": (hidden,),
        f"{begin}self_attn.q_proj.weight": (query, hidden),
        f"{begin}self_attn.k_proj.weight": (value, hidden),
        f"{begin}self_attn.v_proj.weight": (value, hidden),
        f"{begin}self_attn.o_proj.weight": (hidden, query),
        f"{begin}self_attn.q_norm.weight": (width,),
        f"{begin}self_attn.k_norm.weight": (width,),
        f"{begin}post_attention_layernorm.weight": (hidden,),
    }


def tensor(name: str, shape: tuple[int, ...], rng: random.Random, **given: Any) -> TensorProfile:
    """A tensor with statistics as trained ones have."""
    found = role_of(name)
    elements = 1
    for size in shape:
        elements *= size
    std, mean = 0.05 * rng.uniform(0.9, 1.1), rng.gauss(0, 1e-4)
    values: dict[str, Any] = {
        "name": name,
        "role": found.role,
        "layer": found.layer,
        "expert": found.expert,
        "dtype": "BF16",
        "shape": shape,
        "elements": elements,
        "digest": f"blake3:{rng.getrandbits(256):064x}",
        "understood": True,
        "mean": mean,
        "std": std,
        "rms": (std**2 + mean**2) ** 0.5,
        "min": -5 * std,
        "max": 4.9 * std,
        "abs_max": 5 * std,
        "l2_norm": std * elements**0.5,
        "kurtosis": rng.uniform(0.5, 1.5),
        "skewness": rng.gauss(0, 0.02),
        "outliers": {"3": rng.randrange(50), "6": rng.randrange(3)},
        "distinct_values": 3000,
    }
    return TensorProfile(**values | given)


def profile_of(shapes: Shapes, *, model_type: str | None = "qwen3", tied: bool | None = True, **given: Any) -> Profile:
    """A profile of such tensors with its findings; `given` replaces fields of single tensors, by name."""
    rng = random.Random(0)
    tensors = [tensor(name, shape, rng, **given.get(name, {})) for name, shape in shapes.items()]
    if tied and "lm_head.weight" in shapes:
        copy = next(t.digest for t in tensors if t.name == "model.embed_tokens.weight")
        tensors = [t.model_copy(update={"digest": copy}) if t.name == "lm_head.weight" else t for t in tensors]
    bare = Profile(
        name="made-up",
        fingerprint="blake3:" + "0" * 64,
        created="now",
        planner_version="0",
        model_type=model_type,
        tied_embeddings=tied,
        parameters=sum(t.elements for t in tensors),
        bytes=sum(2 * t.elements for t in tensors),
        tensors=tuple(tensors),
    )
    return bare.model_copy(update={"findings": findings_of(bare)})


def brief_of(profile: Profile, config: Mapping[str, Any], **given: Any) -> Brief:
    """A brief on a profile; there is no checkpoint behind it, for a picture reads none."""
    model = map_of(dict(config), {t.name: t.shape for t in profile.tensors})
    fields: dict[str, Any] = {"goal": "g", "policy": Policy(), "check": None, "checkpoint": cast(Checkpoint, None)}
    return Brief(profile=profile, model=model, **fields | given)


def pictured(brief: Brief, tokens: int) -> Picture:
    """Its picture."""
    return picture_of(brief, Aliases([t.name for t in brief.profile.tensors], brief.model), tokens=tokens)
