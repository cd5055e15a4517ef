"""The rules themselves: every claim about a node holds for numbers made up to fit what is known of its inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from proving import Stand, cases_for

from planner.architecture.graph import (
    Activate,
    Attend,
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
    Sum,
    Weight,
)
from planner.effects.attending import attended
from planner.effects.changes import Change, change_of
from planner.effects.facts import Facts
from planner.effects.transfer import transfer
from planner.effects.values import SAME, Shift, Value

Numbers = np.ndarray[Any, Any]
TOKENS = 7


def a_value(random: np.random.Generator, width: int, group: int = 1) -> Value:
    """Something that may be known of a node: one factor or several, zeros, unknowns, offsets, shifts."""
    draws = random.choice([1.0, 2.0, -1.0, 0.5, 0.0, np.nan], width // group, p=[0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    factor = float(draws[0]) if random.random() < 0.6 else np.repeat(draws, group)
    masks = (False, False, True, random.random(width) < 0.3)
    offset = masks[int(random.integers(4))]
    shift: Shift = ("none", "none", "steady", "token")[int(random.integers(4))]
    return Value(factor, offset, shift)


def realised(x: Numbers, value: Value, random: np.random.Generator) -> Numbers:
    """Numbers [tokens, channels] of which `value` is true, x being those before."""
    tokens, width = x.shape
    factor = np.broadcast_to(np.asarray(value.factor), (width,))
    anything = random.normal(0, 1, x.shape)
    new = np.where(np.isnan(factor), anything, np.nan_to_num(factor) * x)
    new = new + np.where(value.offset, random.normal(0, 1, width), 0.0)
    if value.shift != "none":
        new = new + random.normal(0, 1, (1 if value.shift == "steady" else tokens, 1))
    return new


def holds(x: Numbers, new: Numbers, value: Value) -> bool:
    """Whether what is known is true of these numbers."""
    factor = np.broadcast_to(np.asarray(value.factor, dtype=float), (x.shape[1],))
    known = ~np.isnan(factor)
    rest = (new - np.nan_to_num(factor) * x)[:, known]
    offset = np.broadcast_to(np.asarray(value.offset), (x.shape[1],))[known]
    plain, moved = rest[:, ~offset], rest[:, offset]
    if value.shift != "none" and plain.size:
        plain = plain - plain[:, :1] if value.shift == "token" else plain - plain[:1, :1]
    if value.shift != "token" and moved.size:
        moved = moved - moved[:1]
    elif moved.size:
        moved = moved[:0]
    return bool(np.abs(plain).max(initial=0) < 1e-9 and np.abs(moved).max(initial=0) < 1e-9)


def softmax(scores: Numbers) -> Numbers:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def mixtures(node: Attend, q: Numbers, k: Numbers, v: Numbers, sink: Numbers) -> Numbers:
    """Causal attention with rotations and sinks, written out."""
    size, wide = q.shape[1] // node.heads, node.width // node.heads
    shared = node.heads // node.key_value_heads
    out = []
    for head in range(node.heads):
        mine = slice((head // shared) * size, (head // shared + 1) * size)
        one, other = q[:, head * size : (head + 1) * size].copy(), k[:, mine].copy()
        for number, (left, right) in enumerate(node.planes):
            angle = np.arange(len(q)) * (0.7 + number)
            for array in (one, other):
                a, b = array[:, left].copy(), array[:, right].copy()
                array[:, left], array[:, right] = (
                    a * np.cos(angle) - b * np.sin(angle),
                    a * np.sin(angle) + b * np.cos(angle),
                )
        scores = np.where(np.tri(len(q), dtype=bool), one @ other.T, -np.inf)
        if node.sinks:
            scores = np.concatenate([scores, np.full((len(q), 1), sink[head])], axis=1)
        weights = softmax(scores)[:, : len(q)]
        out.append(weights @ v[:, (head // shared) * wide : (head // shared + 1) * wide])
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("planes", [[], [[0, 2], [1, 3]], [[0, 1]]])
def test_attention(planes: list[list[int]], sinks: bool) -> None:
    random = np.random.default_rng([len(planes), sinks])
    heads, groups, size, wide = 4, 2, 4, 3
    node = Attend(
        width=heads * wide, layer=0, says="", query=0, key=1, value=2, heads=heads, key_value_heads=groups,
        planes=np.asarray(planes, dtype=np.int64).reshape(-1, 2), sinks=sinks,
    )  # fmt: skip
    claims = 0
    for _ in range(400):
        x = [random.normal(0, 1, (TOKENS, n)) for n in (heads * size, groups * size, groups * wide)]
        key, value = a_value(random, groups * size), a_value(random, groups * wide)
        if random.random() < 0.5:
            value = SAME
        query = a_value(random, heads * size)
        if random.random() < 0.6:  # the inverse, with and without what a softmax may see
            factors = np.repeat(random.choice([2.0, -1.0, 0.25], groups * size // 2), 2)
            key = dataclasses.replace(key, factor=factors if random.random() < 0.5 else 2.0)
            spread = np.broadcast_to(np.asarray(key.factor), (groups * size,)).reshape(groups, size)
            query = Value(1 / np.repeat(spread, heads // groups, axis=0).reshape(-1))
        found, _ = attended(node, query, key, value, width=heads * size)
        sink = random.normal(0, 1, heads)
        before = mixtures(node, *x, sink)
        after = mixtures(node, *(realised(a, b, random) for a, b in zip(x, (query, key, value), strict=True)), sink)
        assert holds(before, after, found), (query, key, value, found)
        claims += not np.isnan(np.asarray(found.factor)).all()
    assert claims > 40


def computed(node: Node, inputs: list[Numbers], weights: dict[str, Numbers]) -> Numbers:
    """The node's output, written out."""
    match node:
        case Linear():
            out = inputs[0] @ weights["w"].T
            return out if node.bias is None else out + weights["b"]
        case Normalize():
            x = inputs[0].reshape(len(inputs[0]), -1, node.group)
            x = x - x.mean(-1, keepdims=True) if node.kind == "layer" else x
            power = (x**2).sum(-1, keepdims=True) if node.kind == "l2" else (x**2).mean(-1, keepdims=True)
            x = np.divide(x, np.sqrt(power), out=np.zeros_like(x), where=power > 1e-20).reshape(inputs[0].shape)
            if node.weight is not None:
                stored = weights["w"].reshape(-1)
                x = x * np.resize(1 + stored if node.one_plus else stored, node.width)
            return x if node.bias is None else x + np.resize(weights["b"], node.width)
        case Activate():
            x = inputs[0]
            curves = {"relu": np.maximum(x, 0), "relu2": np.maximum(x, 0) ** 2, "silu": x / (1 + np.exp(-x))}
            return (curves | {"tanh": np.tanh(x), "sigmoid": 1 / (1 + np.exp(-x)), "softplus": np.logaddexp(0, x)})[
                node.function
            ]
        case Clip():
            return np.clip(inputs[0], -0.5, 0.5)
        case Product():
            return inputs[0] * inputs[1]
        case Sum():
            return inputs[0] + inputs[1]
        case Join():
            return np.concatenate(inputs, axis=1)
        case Route():
            scores = softmax(inputs[0]) if node.scoring == "softmax" else 1 / (1 + np.exp(-inputs[0]))
            choice = scores + (weights["w"] if node.correction else 0)
            chosen = np.argsort(np.argsort(-choice, axis=1), axis=1) < node.top
            kept = np.where(chosen, scores, 0)
            return kept / kept.sum(1, keepdims=True) if node.renormalized else kept
        case Mix():
            return sum(inputs[0][:, [n]] * expert for n, expert in enumerate(inputs[1:]))  # type: ignore[return-value]
    raise AssertionError(node)


def changed(random: np.random.Generator, old: Numbers) -> tuple[Numbers, Change | None]:
    """A stored array after a change, and what is known of it."""
    matrix = old.reshape(-1, old.shape[-1])
    rows, columns = (random.choice([1.0, 2.0, -1.0, 0.0], n) for n in matrix.shape)
    pick = int(random.integers(7))
    change = [
        None, Change(rows=2.0), Change(rows=-1.0), Change(rows=rows), Change(columns=columns),
        Change(rows=rows, columns=columns), Change(rows=float("nan")),
    ][pick]  # fmt: skip
    if change is None:
        return old, None
    factor = np.broadcast_to(np.reshape(change.rows, (-1, 1)) * np.reshape(change.columns, (1, -1)), matrix.shape)
    new = np.where(np.isnan(factor), random.normal(0, 1, matrix.shape), np.nan_to_num(factor) * matrix)
    added = ("nothing", "nothing", "constant", "same_rows", "same_columns")[int(random.integers(5))]
    if added != "nothing" and not (len(matrix) == 1 and added != "constant"):
        tall, across = (len(matrix) if added == "same_columns" else 1), (columns.size if added == "same_rows" else 1)
        new = new + random.normal(0, 1, (tall, across))
        change = dataclasses.replace(change, added=added)
    return new.reshape(old.shape), change


W, B = Weight("w"), Weight("b")
NODES: dict[str, tuple[Node, list[int], dict[str, tuple[int, ...]]]] = {
    "linear": (Linear(width=5, layer=0, says="", x=0, weight=W), [6], {"w": (5, 6)}),
    "linear with a bias": (Linear(width=5, layer=0, says="", x=0, weight=W, bias=B), [6], {"w": (5, 6), "b": (5,)}),
    "rms": (Normalize(width=6, layer=0, says="", x=0, kind="rms", group=6, weight=W), [6], {"w": (6,)}),
    "rms of 1 + w": (
        Normalize(width=6, layer=0, says="", x=0, kind="rms", group=6, weight=W, one_plus=True), [6], {"w": (6,)},
    ),
    "rms by head": (Normalize(width=6, layer=0, says="", x=0, kind="rms", group=3, weight=W), [6], {"w": (3,)}),
    "rms, a row a head": (Normalize(width=6, layer=0, says="", x=0, kind="rms", group=3, weight=W), [6], {"w": (2, 3)}),
    "as many heads as channels": (
        Normalize(width=9, layer=0, says="", x=0, kind="rms", group=3, weight=W), [9], {"w": (3, 3)},
    ),
    "layer": (
        Normalize(width=6, layer=0, says="", x=0, kind="layer", group=6, weight=W, bias=B), [6], {"w": (6,), "b": (6,)},
    ),
    "layer by head": (
        Normalize(width=6, layer=0, says="", x=0, kind="layer", group=3, weight=W, bias=B), [6], {"w": (3,), "b": (3,)},
    ),
    "l2": (Normalize(width=6, layer=0, says="", x=0, kind="l2", group=3), [6], {}),
    **{f: (Activate(width=4, layer=0, says=f, x=0, function=f), [4], {}) for f in
       ("relu", "relu2", "silu", "tanh", "sigmoid", "softplus")},
    "clip": (Clip(width=4, layer=0, says="", x=0), [4], {}),
    "product": (Product(width=4, layer=0, says="", x=0, y=1), [4, 4], {}),
    "product with one channel": (Product(width=4, layer=0, says="", x=0, y=1), [4, 1], {}),
    "sum": (Sum(width=4, layer=0, says="", terms=(0, 1)), [4, 4], {}),
    "join": (Join(width=7, layer=0, says="", parts=(0, 1)), [4, 3], {}),
    "route": (Route(width=4, layer=0, says="", logits=0, scoring="softmax", top=2, renormalized=True), [4], {}),
    "route by sigmoid": (
        Route(width=4, layer=0, says="", logits=0, scoring="sigmoid", top=1, renormalized=True, correction=W), [4],
        {"w": (4,)},
    ),
    "route to one": (Route(width=4, layer=0, says="", logits=0, scoring="softmax", top=1, renormalized=True), [4], {}),
    "mix": (Mix(width=4, layer=0, says="", route=0, experts=(1, 2, 3)), [3, 4, 4, 4], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_a_node(name: str) -> None:
    node, widths, shapes = NODES[name]
    random = np.random.default_rng(len(name))
    sources = [Lookup(width=width, layer=0, says="", table=Weight(f"t{n}")) for n, width in enumerate(widths)]
    claims = 0
    for _ in range(500):
        x = [random.normal(0, 1, (TOKENS, width)) for width in widths]
        weights = {key: random.normal(0, 1, shape) for key, shape in shapes.items()}
        zero = frozenset(key for key in weights if random.random() < 0.1)
        weights |= {key: weights[key] * 0 for key in zero}
        pairs = {key: changed(random, values) for key, values in weights.items()}
        known = [a_value(random, width) if random.random() < 0.8 else SAME for width in widths]
        if name == "product" and random.random() < 0.2:
            known = [dataclasses.replace(value, factor=0.0) for value in known]
        if name == "mix" and random.random() < 0.7:
            known = [SAME, *(dataclasses.replace(value, factor=2.0) for value in known[1:])]
        if isinstance(node, Mix):
            x[0] = softmax(x[0])
        new = [realised(a, b, random) for a, b in zip(x, known, strict=True)]
        facts = Facts(Graph([*sources, node]), {k: c for k, (_, c) in pairs.items() if c is not None}, zero)
        found = transfer(len(sources), known, facts)
        after = computed(node, new, {key: values for key, (values, _) in pairs.items()})
        assert holds(computed(node, x, weights), after, found), (known, pairs, zero, found)
        claims += not np.isnan(np.asarray(found.factor)).all()
    assert claims > 10


def test_what_is_known_of_several_steps_on_one_tensor(tmp_path: Any) -> None:
    stand = Stand("llama", tmp_path)
    random = np.random.default_rng(3)
    told = 0
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"):
        old = stand.tiny.tensors[name].reshape(-1, stand.tiny.tensors[name].shape[-1])
        cases = list(cases_for(name, stand.tiny.tensors[name], stand.around.model))
        for _ in range(150):
            chosen = [cases[i] for i in random.integers(0, len(cases), int(random.integers(1, 4)))]
            try:
                edits = stand.edits([case.on(name) for case in chosen])
            except ValueError:
                continue
            if name not in edits.tensors or len(edits.tensors) > 1:
                continue
            change = change_of(edits.tensors[name].steps, old.shape)
            if change.measured:
                continue
            new = stand.new(name, edits).reshape(old.shape)
            factor = np.reshape(change.rows, (-1, 1)) * np.reshape(change.columns, (1, -1))
            rest = np.where(np.isnan(factor), 0, new - np.nan_to_num(factor) * old)
            if change.added == "constant":
                rest = rest - rest[:1, :1]
            elif change.added == "same_rows":
                rest = rest - rest[:1]
            elif change.added == "same_columns":
                rest = rest - rest[:, :1]
            if change.added != "nothing" and np.isnan(factor).any():
                continue
            assert np.abs(rest).max() < 1e-9, (name, [case.label for case in chosen], change)
            told += not change.arbitrary
    assert told > 60
