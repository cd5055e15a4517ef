"""The logits that a map's graph computes: an evaluation of its nodes in float64, to hold against transformers' own.

The graph leaves out what no tensor holds; `Constants` brings it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.activations import ACT2FN

from planner.architecture.graph import (
    Activate,
    Attend,
    Channels,
    Clip,
    Join,
    Linear,
    Lookup,
    Node,
    Normalize,
    Product,
    Sum,
    Weight,
)
from planner.architecture.model_map import ModelMap

__all__ = ["Constants", "evaluate"]

EPSILON = 1e-30


@dataclass(frozen=True)
class Constants:
    """What the maths needs and no tensor holds."""

    gelu: Callable[[torch.Tensor], torch.Tensor] = ACT2FN["gelu"]
    """Which of the curves that the graph calls gelu."""
    theta: float = 10000.0
    alibi: float = 0.0
    """What multiplies the heads' slopes on the scores; 0: none."""
    first_position: int = 0
    """Row of the table of positions for the first token."""
    clip: float = 0.0
    logits: float = 1.0
    window: int | None = None
    """How many tokens the attention reaches back, in the layers with rotary positions."""


def evaluate(
    found: ModelMap, tensors: Mapping[str, np.ndarray[Any, Any]], ids: torch.Tensor, constants: Constants
) -> np.ndarray[Any, Any]:
    """Logits [tokens, vocabulary] of one sequence."""
    assert found.graph is not None
    values: list[torch.Tensor] = []
    for node in found.graph:
        out = _value(node, values, tensors, ids, constants)
        assert out.shape == (len(ids), node.width), node
        values.append(out)
    return (values[-1] * constants.logits).numpy()


def _value(
    node: Node, values: list[torch.Tensor], tensors: Mapping[str, Any], ids: torch.Tensor, constants: Constants
) -> torch.Tensor:
    def stored(weight: Weight) -> torch.Tensor:
        array = torch.tensor(tensors[weight.tensor])
        return array.T if weight.transposed else array

    match node:
        case Lookup():
            rows = ids if node.by == "token" else torch.arange(len(ids)) + constants.first_position
            return stored(node.table)[rows]
        case Linear():
            out = values[node.x] @ stored(node.weight).T
            return out if node.bias is None else out + stored(node.bias)
        case Normalize():
            return _normalized(node, values[node.x], stored)
        case Activate():
            curve = constants.gelu if node.function == "gelu" else ACT2FN[node.function]
            return curve(values[node.x])
        case Clip():
            return values[node.x].clamp(-constants.clip, constants.clip)
        case Product():
            return values[node.x] * values[node.y]
        case Sum():
            return torch.stack([values[term] for term in node.terms]).sum(0)
        case Channels():
            return values[node.x][:, torch.from_numpy(node.indices)]
        case Join():
            return torch.cat([values[part] for part in node.parts], dim=1)
        case Attend():
            return _attended(node, values, constants)
    raise AssertionError(node)


def _normalized(node: Normalize, x: torch.Tensor, stored: Any) -> torch.Tensor:
    groups = x.reshape(len(x), -1, node.group)
    if node.kind == "layer":
        groups = groups - groups.mean(-1, keepdim=True)
    groups = groups / torch.sqrt((groups**2).mean(-1, keepdim=True) + EPSILON)
    if node.weight is not None:
        weight = stored(node.weight).reshape(-1, node.group)
        groups = groups * (weight + 1 if node.one_plus else weight)
    if node.bias is not None:
        groups = groups + stored(node.bias).reshape(-1, node.group)
    return groups.reshape(x.shape)


def _attended(node: Attend, values: list[torch.Tensor], constants: Constants) -> torch.Tensor:
    tokens, shared = len(values[node.query]), node.heads // node.key_value_heads
    query = values[node.query].reshape(tokens, node.heads, -1)
    key, value = (values[place].reshape(tokens, node.key_value_heads, -1) for place in (node.key, node.value))
    query, key = (_turned(x, node, constants.theta) for x in (query, key))
    key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key)
    position = torch.arange(tokens, dtype=torch.float64)
    slopes = 2.0 ** (-8.0 / node.heads * torch.arange(1, node.heads + 1))
    scores = scores * query.shape[-1] ** -0.5 + constants.alibi * slopes[:, None, None] * position
    back = position[:, None] - position
    unseen = back < 0 if constants.window is None or not len(node.planes) else (back < 0) | (back >= constants.window)
    scores = scores.masked_fill(unseen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(tokens, -1)


def _turned(x: torch.Tensor, node: Attend, theta: float) -> torch.Tensor:
    count = len(node.planes)
    if not count:
        return x
    first, second = torch.from_numpy(node.planes[:, 0]), torch.from_numpy(node.planes[:, 1])
    angle = torch.arange(len(x))[:, None] * theta ** (-torch.arange(count, dtype=torch.float64) / count)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    out = x.clone()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out
