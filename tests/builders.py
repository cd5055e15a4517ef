"""Small checkpoints made from a seed, and plans for them, in one line each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planner.checkpoint import encode_header, fingerprint_checkpoint, open_checkpoint
from planner.dtypes import FLOATS
from planner.plan import Plan

__all__ = ["a_plan", "random_tensor", "write_checkpoint", "write_shard"]

CONFIG = {"model_type": "qwen3", "tie_word_embeddings": True}


def random_tensor(
    shape: tuple[int, ...], *, dtype: str = "BF16", seed: int = 0, std: float = 0.05
) -> np.ndarray[Any, Any]:
    """Stored patterns of normally distributed weights."""
    values = np.random.default_rng(seed).normal(0, std, shape)
    return FLOATS[dtype].encode(values.astype(FLOATS[dtype].working))


def write_shard(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    *,
    metadata: dict[str, str] | None = None,
) -> None:
    """A safetensors file from name -> (dtype, shape, bytes), in the order given."""
    listed = [(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()]
    header = encode_header(listed, {"format": "pt"} if metadata is None else metadata)
    path.write_bytes(header + b"".join(data for _, _, data in tensors.values()))


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, tuple[str, np.ndarray[Any, Any]]],
    *,
    shards: int = 1,
    config: dict[str, Any] | None = None,
) -> Path:
    """A checkpoint from name -> (dtype, stored patterns), spread over `shards` files with an index if more than one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    packed = {name: (dtype, array.shape, array.tobytes()) for name, (dtype, array) in tensors.items()}
    if shards == 1:
        write_shard(folder / "model.safetensors", packed)
        return folder
    names = list(packed)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        write_shard(folder / file, {name: packed[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def a_plan(model: Path, *modifications: dict[str, Any], **fields: Any) -> Plan:
    """A plan for the checkpoint in `model`: each modification is {"target": ..., "operation": ...} and what differs."""
    return Plan.model_validate(
        {
            "schema": "planner/plan@1",
            "id": "test-plan",
            "created": "2026-01-01T00:00:00Z",
            "goal": "a test",
            "checkpoint": {"name": model.name, "fingerprint": fingerprint_checkpoint(open_checkpoint(model))},
            "analyst": {"kind": "human"},
            "modifications": [
                {
                    "id": f"m{number:02d}",
                    "reasoning": "because",
                    "confidence": 0.5,
                    "expected_impact": "something",
                    **modification,
                }
                for number, modification in enumerate(modifications, start=1)
            ],
            **fields,
        }
    )
