"""Small Llamas, plans of every kind for them, and portable patches of those, honest and otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from builders import random_tensor, write_checkpoint, write_shard
from snapshots import ANY, approved_plan, scale

from planner.checkpoint import digest_bytes, encode_header, read_header
from planner.plan import Plan
from planner.transaction import Receipt, apply_plan

__all__ = ["KINDS", "apply_here", "arrays_of", "llama", "planned", "rewrite", "written"]

WIDTH, INNER, LAYERS = 32, 48, 2
CONFIG = {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "vocab_size": 64,
}
SHAPES = {
    "input_layernorm": (WIDTH,),
    "mlp.down_proj": (WIDTH, INNER),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "post_attention_layernorm": (WIDTH,),
    "self_attn.k_proj": (16, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (16, WIDTH),
}
ARRAYS = {"u": WIDTH, "v": INNER, "wide": WIDTH, "rows": INNER}


def llama(folder: Path, *, dtype: str = "BF16", shards: int = 1) -> Path:
    """A Llama of random weights with a README, in so many shards, and beside it the arrays that the plans read."""
    shapes = {f"model.layers.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in SHAPES.items()}
    shapes |= {"model.embed_tokens.weight": (64, WIDTH), "lm_head.weight": (64, WIDTH), "model.norm.weight": (WIDTH,)}
    tensors = {
        name: (dtype, random_tensor(shape, dtype=dtype, seed=seed)) for seed, (name, shape) in enumerate(shapes.items())
    }
    write_checkpoint(folder, tensors, shards=shards, config=CONFIG)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    generator = np.random.default_rng(1)
    arrays = {name: generator.normal(1, 0.1, size).astype(np.float32) for name, size in ARRAYS.items()}
    packed = {name: ("F32", array.shape, array.tobytes()) for name, array in arrays.items()}
    write_shard(folder.parent / "arrays.safetensors", packed)
    return folder


def array(name: str) -> dict[str, str]:
    """An array beside the plan."""
    return {"file": "arrays.safetensors", "array": name}


STEERED = {
    "target": {"tensors": ["model.layers.1.self_attn.o_proj.weight"]},
    "operation": {"kind": "bake_steering", "vector": array("wide"), "strength": 0.5},
}
KINDS: dict[str, list[dict[str, Any]]] = {
    "tables": [
        scale(1.02, roles=["down_proj", "up_proj", "v_proj"]),  # in another order where they lie in other shards
        {"target": {"roles": ["q_proj"]}, "operation": {"kind": "shift", "offset": 0.01}},
        {"target": {"roles": ["down_proj"]}, "operation": {"kind": "clamp", "minimum": -0.05, "maximum": 0.05}},
    ],
    "content": [
        {
            "target": {"roles": ["down_proj"]},
            "operation": {"kind": "rank_one", "u": array("u"), "v": array("v"), "strength": 0.01},
        },
        {"target": {"roles": ["up_proj"]}, "operation": {"kind": "scale", "factor": array("rows") | {"axis": "rows"}}},
        {"target": {"roles": ["o_proj"]}, "operation": {"kind": "noise", "std": 0.001, "seed": 3}},
        {
            "target": {"tensors": ["model.embed_tokens.weight"], "elements": {"kind": "rows", "indices": "1-3,9"}},
            "operation": {"kind": "zero"},
        },
        {"target": {"layers": "0", "roles": ["v_proj"]}, "operation": {"kind": "rank_reduce", "rank": 3}},
    ],
    "structures": [
        {"target": {"layers": "1"}, "operation": {"kind": "head_scale", "heads": "1", "factor": 0.5}},
        {"target": {"layers": "0-1"}, "operation": {"kind": "neuron_scale", "neurons": "3,5", "factor": 1.5}},
    ],
    "biases": [STEERED],
    "everything": [
        STEERED,
        scale(0.9, roles=["k_proj"]),
        {"target": {"roles": ["gate_proj"]}, "operation": {"kind": "noise", "std": 0.01, "seed": 1}},
    ],
}
"""Modifications by what is in their patch: tables, frames, added tensors and a configuration, all of it."""


def planned(model: Path, kind: str) -> Plan:
    """A plan of that kind for the model, approved."""
    return approved_plan(model, *KINDS[kind], policy=ANY)


def apply_here(plan: Plan, model: Path, out: Path | None, **options: Any) -> Receipt:
    """Apply the plan, whose arrays lie beside the model."""
    return apply_plan(plan, model, out=out, policy=ANY, by="tester", folder=model.parent, **options)


def arrays_of(patch: Path) -> dict[str, bytes]:
    """The arrays of a portable patch, in their order."""
    raw, header = patch.read_bytes(), read_header(patch)
    return {entry.name: raw[entry.begin : entry.begin + entry.nbytes] for entry in header.entries}


def written(patch: Path, arrays: Mapping[str, bytes]) -> Path:
    """A portable patch of these arrays."""
    header = encode_header([(name, "U8", (len(raw),)) for name, raw in arrays.items()], {"format": "planner/patch@1"})
    patch.write_bytes(header + b"".join(arrays.values()))
    return patch


def rewrite(source: Path, target: Path, edit: Callable[[dict[str, Any]], object], *, plan: Any = None) -> Path:
    """The same patch with an edited head, and another plan if that is given; the head has the digest of it."""
    arrays = arrays_of(source)
    head = json.loads(arrays["patch"])
    if plan is not None:
        arrays["plan"] = plan
        head["plan_digest"] = digest_bytes(plan)
    edit(head)
    return written(target, arrays | {"patch": json.dumps(head).encode()})
