"""Plans of several edits that undo one another, and plans that only look so, each with the families it is not for.

The catalogue follows the algebra of the parts; that it is right is for the tests to find, against transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from models.families import FAMILIES
from models.tiny import Tiny, build, logits
from proving import map_of_tiny, truth

from planner.architecture import Parameter
from planner.architecture.graph import Attend
from planner.effects.changes import Change
from planner.effects.verdicts import Judge

__all__ = ["CATALOGUE", "DECLARED", "Edits", "Patient", "merged"]

DECLARED = [key for key, family in FAMILIES.items() if family.model_type != "exaone4"]

Values = np.ndarray[Any, Any]
Factor = float | Values
Edits = dict[str, tuple[Values, Change]]


class Patient:
    """A tiny model under edits."""

    def __init__(self, key: str, tiny: Tiny | None = None) -> None:
        self.key, self.tiny = key, tiny or build(key)
        self.map = map_of_tiny(self.tiny)
        self.judge = Judge(self.map, rounded=False)
        self.before = logits(self.tiny, {}, tiny_eps=True)

    def of(self, *parts: str, layer: int | None = 1) -> list[Parameter]:
        """The parameters with one of these parts, in one layer."""
        return list(self.map.in_layer(layer, *parts))

    def holding(self, part: str, layer: int = 1) -> list[Parameter]:
        """The parameters with a band of that part."""
        return [p for p in self.map.in_layer(layer) if any(band.part == part for band in p.bands)]

    def scaled(self, parameter: Parameter, *, out: Factor = 1.0, into: Factor = 1.0) -> Edits:
        """Outputs (rows of the maths) and inputs multiplied; a vector has outputs alone."""
        old = self.tiny.tensors[parameter.name]
        if old.ndim == 1:
            return {parameter.name: (old * out, Change(columns=out))}
        rows, columns = (into, out) if parameter.transposed else (out, into)
        return {parameter.name: (old * np.reshape(rows, (-1, 1)) * np.reshape(columns, (1, -1)), Change(rows, columns))}

    def added(self, parameter: Parameter, amount: Values, kind: str) -> Edits:
        """Something added in the orientation of the maths."""
        old = self.tiny.tensors[parameter.name]
        turned = {"same_rows": "same_columns", "same_columns": "same_rows"}
        stored = turned.get(kind, kind) if parameter.transposed else kind
        return {parameter.name: (old + (amount.T if parameter.transposed else amount), Change(added=stored))}

    def banded(self, part: str, factor: float, *, units: Iterable[int] | None = None) -> Edits:
        """Heads or neurons of everything that makes them, weights and biases, multiplied."""
        found: Edits = {}
        for parameter in self.holding(part):
            band = next(band for band in parameter.bands if band.part == part)
            old = self.tiny.tensors[parameter.name]
            along = old.shape[0 if band.axis == "rows" else -1]
            factors = np.ones(along)
            factors[band.indices[list(units) if units is not None else slice(None)].reshape(-1)] = factor
            if band.axis == "rows":
                found[parameter.name] = (old * factors[:, None], Change(rows=factors))
            else:
                found[parameter.name] = (old * factors, Change(columns=factors))
        return found

    def verdict(self, edits: Edits) -> tuple[str, str]:
        """The effect, and why."""
        found = self.judge.verdict({name: change for name, (_, change) in edits.items()})
        return found.effect, found.why

    def truth(self, edits: Edits) -> str:
        after = logits(self.tiny, {name: values for name, (values, _) in edits.items()}, tiny_eps=True)
        return truth(self.tiny, self.before, after)


def merged(*several: Edits) -> Edits:
    """Edits of different tensors together; of the same tensor, one after the other."""
    found: Edits = {}
    for edits in several:
        for name, (values, change) in edits.items():
            assert name not in found
            found[name] = (values, change)
    return found


def each(found: Iterable[Edits]) -> Edits:
    return merged(*found)


# A plan for a family, or None where the family has nothing of the kind.


def values_and_output(a: float) -> Callable[[Patient], Edits | None]:
    return lambda p: merged(p.banded("value", a), each(p.scaled(o, into=1 / a) for o in p.of("output")))


def one_value_head(p: Patient) -> Edits | None:
    value = next(b for x in p.holding("value") for b in x.bands if b.part == "value")
    output = next(b for x in p.of("output") for b in x.bands)
    shared = len(output.indices) // len(value.indices)
    return merged(p.banded("value", 3.0, units=[0]), p.banded("output", 1 / 3, units=range(shared)))


def queries_and_keys(a: float) -> Callable[[Patient], Edits | None]:
    def plan(p: Patient) -> Edits | None:
        if "key_value_down" in {x.part for x in p.of()}:
            return None
        if any("+" in x.part for x in p.holding("query")):
            factors: dict[str, Edits] = {}
            for name, (values, change) in p.banded("query", a).items():
                other, second = p.banded("key", 1 / a)[name]
                both = change.then(second)
                factors[name] = {name: (values * other / p.tiny.tensors[name], both)}
            return each(factors.values())
        return merged(p.banded("query", a), p.banded("key", 1 / a))

    return plan


def one_plane(p: Patient) -> Edits | None:
    return rotated_channels(p, lambda node: list(node.planes[0]) if len(node.planes) else [0])


def rotated_channels(p: Patient, channels: Callable[[Attend], list[int]]) -> Edits | None:
    assert p.map.graph is not None
    node = next(n for n in p.map.graph if isinstance(n, Attend) and n.layer == 1)
    query, key = p.holding("query"), p.holding("key")
    if any("+" in x.part for x in (*query, *key)) or p.of("key_value_down"):
        return None
    found: Edits = {}
    for parameters, factor in ((query, 3.0), (key, 1 / 3)):
        for parameter in parameters:
            band = parameter.bands[0]
            along = np.ones(band.indices.size)
            along[band.indices[:, channels(node)].reshape(-1)] = factor
            found |= p.scaled(parameter, out=along)
    return found


def norms_of_queries_and_keys(a: float, b: float) -> Callable[[Patient], Edits | None]:
    def plan(p: Patient) -> Edits | None:
        queries, keys = (p.of(f"{one}_norm", f"{one}_norm.bias") for one in ("query", "key"))
        if not queries:
            return None
        return merged(each(p.scaled(x, out=a) for x in queries), each(p.scaled(x, out=b) for x in keys))

    return plan


def negated_projection_and_norm(p: Patient) -> Edits | None:
    if not p.of("query_norm"):
        return None
    norms = p.of("query_norm", "query_norm.bias")
    return merged(p.banded("query", -1.0), each(p.scaled(x, out=-1.0) for x in norms))


def up_and_down(a: Factor, b: Factor) -> Callable[[Patient], Edits | None]:
    def plan(p: Patient) -> Edits | None:
        ups, downs = p.of("up", "up.bias", "expert_up", "shared_up"), p.of("down", "expert_down", "shared_down")
        if not ups or (p.of("router") and not p.of("expert_up")):
            return None
        return merged(
            each(p.scaled(x, out=_fit(a, p.tiny.tensors[x.name], x, out=True)) for x in ups),
            each(p.scaled(x, into=_fit(b, p.tiny.tensors[x.name], x, out=False)) for x in downs),
        )

    return plan


def _fit(factor: Factor, values: Values, parameter: Parameter, *, out: bool) -> Factor:
    """The leading factors, as many as there are neurons."""
    if isinstance(factor, float):
        return factor
    return factor[: values.shape[0 if out != parameter.transposed else -1]]


def gate_and_down(p: Patient) -> Edits | None:
    gates = p.of("gate", "gate.bias", "expert_gate")
    downs = p.of("down", "expert_down")
    if not gates:
        return None
    return merged(each(p.scaled(x, out=2.0) for x in gates), each(p.scaled(x, into=0.5) for x in downs))


ATTENTION = ("query", "key", "value", "query+key+value", "query_down", "key_value_down")
MLP = ("gate", "up", "gate+up", "router", "expert_gate", "expert_up", "shared_gate", "shared_up")


def norm_and_readers(norm: str, a: Factor, *, readers: tuple[str, ...]) -> Callable[[Patient], Edits | None]:
    def plan(p: Patient) -> Edits | None:
        norms = p.of(norm, f"{norm}.bias")
        if not norms:
            return None
        both = norm == "attention_norm" and p.map.decoder is not None and not p.of("mlp_norm")
        parts = (*ATTENTION, *MLP) if both and readers == ATTENTION else readers
        after = p.map.decoder is not None and p.map.decoder.layer(1).order == "after"
        if after:
            return None
        return merged(
            each(p.scaled(x, out=a) for x in norms), each(p.scaled(x, into=1 / a) for x in p.of(*parts) if x.reads)
        )

    return plan


def norm_and_attention_alone(p: Patient) -> Edits | None:
    if p.of("mlp_norm") or not p.of("attention_norm"):
        return None
    norms = p.of("attention_norm", "attention_norm.bias")
    return merged(each(p.scaled(x, out=2.0) for x in norms), each(p.scaled(x, into=0.5) for x in p.of(*ATTENTION)))


def final_norm_and_head(p: Patient) -> Edits | None:
    norms = p.of("final_norm", "final_norm.bias", layer=None)
    if not norms:
        return None
    readers = p.of("output_projection", layer=None) or p.of("head", layer=None)
    return merged(each(p.scaled(x, out=2.0) for x in norms), each(p.scaled(x, into=0.5) for x in readers))


def whole_stream(p: Patient) -> Edits | None:
    writers = []
    for layer in (None, 0, 1, 2):
        posts = {"output": "attention_post_norm", "down": "mlp_post_norm"}
        for x in p.map.in_layer(layer):
            part = x.part.removesuffix(".bias")
            normed = part in posts and any(p.map.in_layer(layer, posts[part]))
            if part in ("attention_post_norm", "mlp_post_norm") or (x.writes and not normed):
                writers.append(x)
    found: Edits = {}
    for x in writers:
        table = x.part in ("embedding", "positions")
        found |= {x.name: (p.tiny.tensors[x.name] * 2.0, Change(rows=2.0))} if table else p.scaled(x, out=2.0)
    return found


def embedding_and_norm(p: Patient) -> Edits | None:
    norms = p.of("final_norm", "final_norm.bias", layer=None)
    tables = p.of("embedding", layer=None)
    both = merged(each(p.scaled(x, into=2.0) for x in tables), each(p.scaled(x, out=0.5) for x in norms))
    return both if norms else None


def router_vector(p: Patient) -> Edits | None:
    row = np.random.default_rng(1).normal(0, 0.3, (1, p.tiny.config.get("hidden_size", 1)))
    routers = p.of("router")
    return each(p.added(x, row, "same_rows") for x in routers) if routers else None


def head_vector(p: Patient) -> Edits | None:
    heads = p.of("head", layer=None)
    if not heads:
        return None
    row = np.random.default_rng(2).normal(0, 0.3, (1, p.tiny.tensors[heads[0].name].shape[1]))
    return each(p.added(x, row, "same_rows") for x in heads)


def vector_on_writers(p: Patient) -> Edits | None:
    """The same vector on every row of what writes to the stream, and one number on its biases: no mean knows it."""
    found: Edits = {}
    for x in p.of("output", "down", "output.bias", "down.bias"):
        values = p.tiny.tensors[x.name]
        if values.ndim == 1:
            found[x.name] = (values + 0.4, Change(added="constant"))
        else:
            inputs = values.shape[0 if x.transposed else 1]
            found |= p.added(x, np.random.default_rng(3).normal(0, 0.3, (1, inputs)), "same_rows")
    return found


def constant_on_readers(p: Patient) -> Edits | None:
    found: Edits = {}
    for x in p.of("query", "key", "value", "gate", "up"):
        rows = p.tiny.tensors[x.name].shape[1 if x.transposed else 0]
        found |= p.added(x, np.random.default_rng(4).normal(0, 0.3, (rows, 1)), "same_columns")
    return found or None


def key_bias(p: Patient) -> Edits | None:
    found: Edits = {}
    for x in p.holding("key"):
        if x.part.endswith(".bias"):
            band = next(band for band in x.bands if band.part == "key")
            values, factors = p.tiny.tensors[x.name].copy(), np.ones(p.tiny.tensors[x.name].size)
            rows = band.indices.reshape(-1)
            values[rows] += np.random.default_rng(6).normal(0, 0.5, rows.size)
            factors[rows] = np.nan
            found[x.name] = (values, Change(columns=factors))
    return found or None


def latent(parts: Mapping[str, tuple[Factor, Factor]]) -> Callable[[Patient], Edits | None]:
    def plan(p: Patient) -> Edits | None:
        if not p.of("key_value_down") or not all(p.of(part) for part in parts):
            return None
        return each(
            p.scaled(x, out=out, into=into)
            for part, (out, into) in parts.items()
            for x in p.of(part, f"{part}.bias" if isinstance(into, float) and into == 1 else part)
        )

    return plan


_PLAIN, _TURNED, _VALUE = 6, 4, 11
_QUERY_PLAIN = np.tile(np.repeat([3.0, 1.0], [_PLAIN, _TURNED]), 4)
_QUERY_TURNED = np.tile(np.repeat([1.0, 3.0], [_PLAIN, _TURNED]), 4)
_UP_PLAIN = np.tile(np.repeat([1 / 3, 1.0], [_PLAIN, _VALUE]), 4)
_UP_VALUE = np.tile(np.repeat([1.0, -3.0], [_PLAIN, _VALUE]), 4)
_PER_NEURON = np.random.default_rng(8).choice([0.5, 2.0, 4.0], 200)
_PER_CHANNEL = np.random.default_rng(9).uniform(0.5, 2, 32)

EVERY = set(FAMILIES)
CLIPPED = {"olmo-clip", "olmoe-clip"}
CURVED = {
    "gpt2", "gpt2-untied", "gpt_bigcode", "gpt_bigcode-mha", "gptj", "gpt_neox", "gpt_neox-sequential",
    "gpt_neox-nobias", "bloom", "bloom-residual", "falcon", "falcon-new", "falcon-new-onenorm", "falcon-alibi", "mpt",
    "phi", "phi-qknorm", "phi-gqa", "starcoder2", "starcoder2-nobias",
}  # fmt: skip
"""An MLP of two maps with a curve between them."""
SQUARED = {"arcee", "nemotron", "nemotron-bias", "persimmon"}
RELU = {"opt", "opt-post", "opt-nobias"}
ONE_PLUS = {key for key in FAMILIES if key.startswith(("gemma", "nemotron"))}
UNFIT = ONE_PLUS | {"bloom-residual"}
"""Norms that no factor can be put on, or that the residual stream goes on from."""
RENORMED = {key for key in FAMILIES if key.startswith(("gemma3", "olmo2", "olmo3", "qwen3", "olmoe"))}
RENORMED |= {"cohere-qknorm", "phi-qknorm", "stablelm-qknorm"}
"""Norms of queries and keys take away what is done to the whole of a head, and spoil what is done to a part of it."""
AFTER = {key for key in FAMILIES if key.startswith(("gemma2", "gemma3", "olmo2", "olmo3"))}
"""A norm after each branch and, but for GLM-4's, no bias before it."""
MEAN_TAKEN = {
    key
    for key in FAMILIES
    if key.startswith(("gpt", "opt", "bloom", "falcon", "mpt", "cohere", "starcoder", "stablelm", "nemotron"))
    or key in ("olmo", "olmo-clip", "phi", "phi-qknorm", "phi-gqa")
}
"""Every norm of the residual stream is a LayerNorm."""
UNTURNED = {key for key in FAMILIES if key.startswith(("gpt2", "gpt_bigcode", "opt", "bloom", "mpt", "falcon-alibi"))}
"""No rotary positions; smollm3 and cohere2 have none in layer 1."""
SIGMOID = {"deepseek_v3", "deepseek_v3-noqlora"}

CATALOGUE: dict[str, tuple[Callable[[Patient], Edits | None], set[str]]] = {
    "values 2, output 1/2": (values_and_output(2.0), CLIPPED),
    "values -3, output -1/3": (values_and_output(-3.0), CLIPPED),
    "a group of heads": (one_value_head, CLIPPED),
    "queries 2, keys 1/2": (queries_and_keys(2.0), {"olmo-clip"}),
    "queries -1, keys -1": (queries_and_keys(-1.0), {"phi-qknorm"}),
    "norms of queries 2, of keys 1/2": (norms_of_queries_and_keys(2.0, 0.5), ONE_PLUS | {"olmoe-clip"}),
    "norms of queries -1, of keys -1": (norms_of_queries_and_keys(-1.0, -1.0), ONE_PLUS),
    "norms of queries 2, of keys 2": (norms_of_queries_and_keys(2.0, 2.0), EVERY),
    "queries -1, their norm -1": (negated_projection_and_norm, ONE_PLUS | {"phi-qknorm"}),
    "up 2, down 1/2": (up_and_down(2.0, 0.5), CURVED | SQUARED),
    "up 2, down 1/4": (up_and_down(2.0, 0.25), EVERY - SQUARED - AFTER),
    "up -1, down -1": (up_and_down(-1.0, -1.0), CURVED | SQUARED | RELU),
    "up and down by neuron": (up_and_down(_PER_NEURON, 1 / _PER_NEURON), CURVED | SQUARED),
    "gate 2, down 1/2": (gate_and_down, EVERY),
    "attention's norm 2, its readers 1/2": (norm_and_readers("attention_norm", 2.0, readers=ATTENTION), UNFIT),
    "attention's norm by channel": (norm_and_readers("attention_norm", _PER_CHANNEL, readers=ATTENTION), UNFIT),
    "MLP's norm 2, its readers 1/2": (norm_and_readers("mlp_norm", 2.0, readers=MLP), UNFIT),
    "MLP's norm by channel": (norm_and_readers("mlp_norm", _PER_CHANNEL, readers=MLP), UNFIT),
    "one norm 2, attention alone 1/2": (norm_and_attention_alone, EVERY),
    "final norm 2, head 1/2": (final_norm_and_head, ONE_PLUS),
    "the whole stream": (whole_stream, AFTER | {"bloom", "bloom-residual", "opt-post"}),
    "embedding 2, final norm 1/2": (embedding_and_norm, EVERY - {"bloom", "bloom-residual"}),
    "a vector on the router": (router_vector, SIGMOID),
    "a vector on the writers": (vector_on_writers, EVERY - MEAN_TAKEN),
    "a constant on the readers": (constant_on_readers, EVERY - {"olmo", "olmo-clip"}),
    "the bias of the keys": (key_bias, EVERY - UNTURNED),
    "a vector on the head": (head_vector, set()),
    "latent: plain": (latent({"query": (_QUERY_PLAIN, 1.0), "key_value_up": (_UP_PLAIN, 1.0)}), set()),
    "latent: turned": (
        latent({"query": (_QUERY_TURNED, 1.0), "key_value_down": (np.repeat([1.0, 1 / 3], [14, 4]), 1.0)}), set(),
    ),
    "latent: values": (latent({"key_value_up": (_UP_VALUE, 1.0), "output": (1.0, -1 / 3)}), set()),
    "latent: norm and map": (latent({"key_value_norm": (2.0, 1.0), "key_value_up": (1.0, 0.5)}), set()),
    "latent: queries' norm": (latent({"query_down_norm": (2.0, 1.0), "query": (1.0, 0.5)}), set()),
    "latent: packed rows": (latent({"key_value_down": (np.repeat([3.0, 1.0], [14, 4]), 1.0)}), set()),
    "latent: packed whole": (latent({"key_value_down": (3.0, 1.0)}), EVERY),
    "a plane of rotation": (one_plane, RENORMED | {"olmo-clip"}),
    "one rotated channel": (
        lambda p: rotated_channels(p, lambda node: [0]), EVERY - UNTURNED - {"smollm3", "cohere2"},
    ),
}  # fmt: skip
