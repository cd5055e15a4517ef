"""Tiny random models as checkpoints: config, stored tensors, a folder; and the logits after an edit."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.oracle import config_of, machine, written_config
from safetensors.torch import save_file

__all__ = ["Tiny", "build", "logits"]

Tensors = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, eq=False)
class Tiny:
    """A tiny model: what its checkpoint folder holds."""

    key: str
    config: dict[str, Any]
    tensors: dict[str, np.ndarray[Any, Any]]
    tied: bool
    input: str
    """Name of the stored embedding."""
    output: str
    """Name under which a head is stored, where one is."""

    def write(self, folder: Path, dtype: str = "F32") -> Path:
        """A checkpoint folder with the weights rounded to `dtype`: F64, F32, F16 or BF16."""
        form = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config | {"dtype": str(form).removeprefix("torch.")}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        # torch rounds to nearest, ties to even.
        packed = {name: torch.tensor(values).to(form) for name, values in self.tensors.items()}
        save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


def _weights(shape: tuple[int, ...], kind: str, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Values large enough that every part of the model shows in the logits.

    Norm weights lie in [0.6, 1.5] (a norm that stores w of 1 + w: in [-0.4, 0.5]); biases are normal with 0.3;
    embeddings with 0.7; matrices with 1.2 / sqrt(32), about 0.2.
    """
    if kind == "norm":
        return random.uniform(0.6, 1.5, shape)
    if kind == "norm1p":
        return random.uniform(-0.4, 0.5, shape)
    if kind == "selection":
        return random.normal(0, 0.05, shape)  # wide enough to change some choices, and to leave no expert idle
    if kind == "bias":
        return random.normal(0, 0.3, shape)
    if kind == "embedding":
        return random.normal(0, 0.7, shape)
    return random.normal(0, 1.2 / np.sqrt(32), shape)


def _kind(name: str, owner: Any) -> str:
    of = type(owner).__name__
    if name.endswith("e_score_correction_bias"):
        return "selection"
    if name.endswith("bias"):
        return "bias"
    if "Norm" in of:
        return "norm1p" if of.startswith("Gemma") or of.endswith("1P") else "norm"
    if "Embedding" in of:
        return "embedding"
    return "matrix"


@functools.cache
def build(key: str, *, seed: int = 0, with_copy: bool = False) -> Tiny:
    """The family's tiny model with random weights; the same object each time.

    `with_copy`: a tied family whose file holds the head as well, equal to the embedding.
    """
    built = machine(key)
    tied = bool(getattr(config_of(key), "tie_word_embeddings", False))
    if with_copy and not tied:
        raise ValueError(f"{key} is not tied")
    tensors = {}
    for name, (shape, _) in built.places.items():
        if tied and name == built.output:
            continue
        random = np.random.default_rng([seed, zlib.crc32(f"{key}/{name}".encode())])
        tensors[name] = _weights(shape, _kind(name, built.kinds[name][0]), random)
    if with_copy:
        tensors[built.output] = tensors[built.input].copy()
    for values in tensors.values():
        values.flags.writeable = False
    return Tiny(key, written_config(key), tensors, tied, built.input, built.output)


def logits(
    tiny: Tiny,
    edits: Tensors,
    *,
    add: Tensors | None = None,
    drop: frozenset[str] | set[str] = frozenset(),
    config_overrides: Mapping[str, Any] | None = None,
    tiny_eps: bool = False,
    loader: str = "v5",
) -> np.ndarray[Any, Any]:
    """Logits [64 positions, vocabulary] in float64 after the edits, as a loader of the edited checkpoint computes them.

    `edits` replaces stored tensors, `add` brings new ones, `drop` takes some out, `config_overrides` changes
    config.json. Tensors that the architecture has no place for are ignored, as transformers does; missing ones raise
    KeyError. `tiny_eps` sets every normaliser's epsilon to 1e-30. `loader`: "v5" (transformers from 5: where a tied
    config meets two stored copies that differ, both are used; a head stored alone is the embedding too) or "v4"
    (before: a tied config always makes the embedding the head).
    """
    if unknown := [name for name in edits if name not in tiny.tensors]:
        raise KeyError(f"no stored tensor {unknown}")
    overrides = dict(config_overrides or {})
    tied = bool(overrides.pop("tie_word_embeddings", tiny.tied))
    built = machine(tiny.key, _frozen(overrides))
    tensors = {**tiny.tensors, **edits, **(add or {})}
    for name in drop:
        del tensors[name]
    if tied:
        if built.input not in tensors and loader == "v5" and built.output in tensors:
            tensors[built.input] = tensors[built.output]
        if built.output not in tensors or loader == "v4":
            tensors[built.output] = tensors[built.input]
    built.hold(tensors)
    return built.run(tiny_eps=tiny_eps)


def _frozen(overrides: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Overrides as something a cache can hold."""
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(overrides.items())
    )
