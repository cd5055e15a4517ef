"""A graph computed in numpy, float64: if it says what the code does, its logits are those of transformers.

Constants that a graph leaves out (scales of embedding, scores, branches, routes and logits), the angles of rotation and
the mask come from the configuration object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.architecture.graph import (
    Activate,
    Attend,
    Channels,
    Clip,
    Graph,
    Join,
    Linear,
    Lookup,
    Mix,
    Node,
    Normalize,
    Product,
    Route,
    Softcap,
    Sum,
    Weight,
)

__all__ = ["arithmetic"]

Values = NDArray[np.float64]
LAYER_NORM_EPSILON = 1e-5  # OLMo's, which no key gives


def arithmetic(graph: Graph, tensors: Mapping[str, Values], config: Any, ids: NDArray[np.int64]) -> Values:
    """Logits [positions, vocabulary] of one sequence of token ids."""
    values: list[Values] = []
    for node in graph:
        values.append(_Step(tensors, config, ids, values).of(node))
        assert values[-1].shape == (len(ids), node.width), node.says
    return values[-1] / getattr(config, "logits_scaling", 1.0)


class _Step:
    def __init__(
        self, tensors: Mapping[str, Values], config: Any, ids: NDArray[np.int64], values: list[Values]
    ) -> None:
        self.tensors, self.config, self.ids, self.values = tensors, config, ids, values

    def stored(self, weight: Weight) -> Values:
        array = self.tensors[weight.tensor]
        return array.T if weight.transposed else array

    def of(self, node: Node) -> Values:
        x = self.values[node.inputs[0]] if node.inputs else np.zeros(0)
        match node:
            case Lookup():
                factor = math.sqrt(node.width) if "gemma" in self.config.model_type else 1.0
                return self.stored(node.table)[self.ids] * getattr(self.config, "embedding_multiplier", factor)
            case Linear():
                out = x @ self.stored(node.weight).T
                return out if node.bias is None else out + self.stored(node.bias)
            case Normalize():
                return self.normalized(node, x)
            case Activate():
                return _ACTIVATIONS[node.function](x)
            case Clip():
                return x.clip(-self.config.clip_qkv, self.config.clip_qkv)
            case Softcap():
                return np.tanh(x / self.config.final_logit_softcapping) * self.config.final_logit_softcapping
            case Product():
                return x * self.values[node.y]
            case Sum():
                branch = getattr(self.config, "residual_multiplier", 1.0) if node.stream else 1.0
                return x + branch * sum(self.values[term] for term in node.terms[1:])
            case Channels():
                return x[:, node.indices]
            case Join():
                return np.concatenate([self.values[part] for part in node.parts], axis=1)
            case Attend():
                return self.attended(node)
            case Route():
                return self.routed(node, x)
            case Mix():
                factor = getattr(self.config, "routed_scaling_factor", 1.0)
                return factor * sum(x[:, [e]] * self.values[out] for e, out in enumerate(node.experts))
        raise AssertionError(node)

    def normalized(self, node: Normalize, x: Values) -> Values:
        groups = x.reshape(len(x), -1, node.group)
        if node.kind == "layer":
            groups = groups - groups.mean(-1, keepdims=True)
        groups = groups / np.sqrt(
            (groups**2).mean(-1, keepdims=True) + getattr(self.config, "rms_norm_eps", LAYER_NORM_EPSILON)
        )
        if node.weight is not None:
            weight = self.stored(node.weight) + (1.0 if node.one_plus else 0.0)
            groups = groups * (weight.reshape(-1, node.group))
        if node.bias is not None:
            groups = groups + self.stored(node.bias).reshape(-1, node.group)
        return groups.reshape(x.shape)

    def attended(self, node: Attend) -> Values:
        tokens = len(self.ids)
        query, key, value = (
            self.values[place].reshape(tokens, heads, -1).transpose(1, 0, 2)
            for place, heads in (
                (node.query, node.heads),
                (node.key, node.key_value_heads),
                (node.value, node.key_value_heads),
            )
        )
        query, key = self.turned(node, query), self.turned(node, key)
        shared = node.heads // node.key_value_heads
        key, value = key.repeat(shared, axis=0), value.repeat(shared, axis=0)
        scale = query.shape[-1] ** -0.5
        if "gemma" in self.config.model_type and hasattr(self.config, "query_pre_attn_scalar"):
            scale = self.config.query_pre_attn_scalar**-0.5
        scores = query @ key.transpose(0, 2, 1) * getattr(self.config, "attention_multiplier", scale)
        if self.config.model_type == "gemma2" and self.config.attn_logit_softcapping is not None:
            cap = self.config.attn_logit_softcapping
            scores = np.tanh(scores / cap) * cap
        scores = np.where(self.mask(node), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ value).transpose(1, 0, 2).reshape(tokens, -1)

    def turned(self, node: Attend, x: Values) -> Values:
        """Plane i turned by position · base^(-i / planes)."""
        rope = self.config.rope_parameters
        if "rope_theta" not in rope:
            rope = rope[self.config.layer_types[node.layer]]
        count = len(node.planes)
        if not count:
            return x
        angles = np.arange(x.shape[1])[:, None] * rope["rope_theta"] ** (-np.arange(count) / count)
        first, second = node.planes.T
        out = x.copy()
        out[..., first] = x[..., first] * np.cos(angles) - x[..., second] * np.sin(angles)
        out[..., second] = x[..., second] * np.cos(angles) + x[..., first] * np.sin(angles)
        return out

    def mask(self, node: Attend) -> NDArray[np.bool_]:
        back = np.arange(len(self.ids))[:, None] - np.arange(len(self.ids))
        kinds, window = getattr(self.config, "layer_types", None), getattr(self.config, "sliding_window", None)
        sliding = window and (kinds is None or kinds[node.layer] == "sliding_attention")
        return (back >= 0) & (back < window) if sliding else back >= 0

    def routed(self, node: Route, logits: Values) -> Values:
        if node.scoring == "softmax":
            scores = np.exp(logits - logits.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
        else:
            scores = 1 / (1 + np.exp(-logits))
        choice = scores if node.correction is None else scores + self.stored(node.correction)
        if self.config.model_type == "deepseek_v3" or getattr(self.config, "topk_method", "") == "group_limited_greedy":
            groups = choice.reshape(len(choice), self.config.n_group, -1)
            best = np.sort(groups, -1)[..., -2:].sum(-1) if node.scoring == "sigmoid" else groups.max(-1)
            lowest = np.sort(best, -1)[:, [-self.config.topk_group]]
            choice = np.where((best >= lowest)[..., None], groups, -np.inf).reshape(choice.shape)
        chosen = choice >= np.sort(choice, -1)[:, [-node.top]]
        weights = np.where(chosen, scores, 0.0)
        return weights / weights.sum(-1, keepdims=True) if node.renormalized else weights


def _gelu(x: Values) -> Values:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": _gelu,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
