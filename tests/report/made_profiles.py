"""Profiles made up for the page: no weights, only numbers."""

from __future__ import annotations

import math
from typing import Any

from planner.profile import QUANTILES, Profile, TensorProfile
from planner.profile.types import Element, Finding, HeadNorms, NormSummary

__all__ = ["HOSTILE", "a_finding", "a_profile", "a_tensor", "bell", "layered"]

HOSTILE = (
    "</script><img src=x onerror=alert(1)>.weight",
    "<!--<script>.weight",
    "model.layers.0.\u202egnp.exe.weight",
    "tab\tnewline\nnull\x00escape\x1b[31m",
    "quote\"apostrophe'back\\slash&amp;",
    "line\u2028separator\u2029paragraph",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "__proto__",
    "",
)


def a_tensor(name: str = "model.layers.0.mlp.down_proj.weight", **fields: Any) -> TensorProfile:
    """A tensor of 8 x 4 elements with everything that a page can show, and what differs."""
    std = fields.get("std", 0.5) or 0.0
    given: dict[str, Any] = {
        "name": name,
        "role": "down_proj",
        "layer": 0,
        "dtype": "BF16",
        "shape": (8, 4),
        "digest": "blake3:" + "0123456789abcdef" * 4,
        "understood": True,
        "mean": 0.25,
        "std": std,
        "min": -3 * std,
        "max": 4 * std,
        "abs_max": 4 * std,
        "rms": std,
        "l2_norm": std * math.sqrt(32),
        "skewness": 0.1,
        "kurtosis": 1.5,
        "quantiles": {str(order): std * (6 * order - 3) for order in QUANTILES},
        "outliers": {"3": 2, "6": 1},
        "distinct_values": 30,
        "rows": NormSummary(count=8, min=0.1, median=0.2, max=0.9, cv=0.3, smallest_at=(1, 2), largest_at=(7, 0)),
        "heads": (HeadNorms(part="query", axis="rows", width=2, norms=(1.0, 2.0, 3.0, 4.0)),),
        "largest": (Element(index=(7, 3), value=4 * std), Element(index=(0, 1), value=-3 * std)),
    }
    given |= fields
    return TensorProfile(elements=math.prod(given["shape"]), **given)


def a_profile(*tensors: TensorProfile, **fields: Any) -> Profile:
    """A profile of these tensors, and what differs."""
    given = {
        "name": "made-up",
        "fingerprint": "blake3:" + "f" * 64,
        "created": "2026-01-01T00:00:00Z",
        "planner_version": "0.1.0",
        "model_type": "qwen3",
        "tied_embeddings": None,
        "parameters": sum(tensor.elements for tensor in tensors),
        "bytes": 2 * sum(tensor.elements for tensor in tensors),
        "tensors": tensors,
    }
    return Profile.model_validate(given | fields)


def a_finding(tensor: str, sentence: str, kind: str = "kurtosis") -> Finding:
    """A finding about a tensor."""
    return Finding(tensor=tensor, kind=kind, value=9.0, typical=1.0, robust_z=8.0, sentence=sentence)


def layered(layers: int = 6, roles: tuple[str, ...] = ("q_proj", "down_proj")) -> Profile:
    """A stack in which std grows with the layer, one tensor of it four times too large; an embedding before it."""
    tensors = [a_tensor("model.embed_tokens.weight", role="embed_tokens", layer=None, std=0.03)]
    for layer in range(layers):
        for role in roles:
            std = (0.1 + 0.01 * layer) * (4 if (role, layer) == ("down_proj", 3) else 1)
            tensors.append(a_tensor(f"model.layers.{layer}.{role}.weight", role=role, layer=layer, std=std))
    return a_profile(*tensors, findings=(a_finding(tensors[8].name, f"{tensors[8].name} stands out"),))


def bell(name: str) -> tuple[list[float], list[int]]:
    """Ten bins."""
    return [float(edge) for edge in range(-5, 6)], [1, 4, 9, 16, 25, 25, 16, 9, 4, 1]
