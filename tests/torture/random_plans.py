"""A thousand plans drawn by chance: applied, sometimes on top of each other, and taken back; every byte compared.

A small Llama with arrays and a second checkpoint beside it, so that every kind of operation finds what it needs; in all
float dtypes, in one file or in several. After each apply only planned tensors may have changed. After each revert
the folder is what it was, to the last bit, mode and extended attribute.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import act
import numpy as np
from builders import random_tensor, write_checkpoint
from judgement import Tally
from scenes import plan_for
from worlds import Snapshot, copied, difference, snapshot

__all__ = ["KINDS", "Model", "models_in", "tried"]

DTYPES = ("BF16", "F16", "F32", "F64")
HIDDEN, HEADS, GROUPS, WIDE, TOKENS, LAYERS = 16, 4, 2, 24, 40, 1
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HIDDEN // HEADS,
    "intermediate_size": WIDE,
    "vocab_size": TOKENS,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
WRITERS, READERS = ("self_attn.o_proj", "mlp.down_proj"), ("self_attn.q_proj", "mlp.up_proj", "mlp.gate_proj")
_KV = HIDDEN // HEADS * GROUPS
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (_KV, HIDDEN),
    "self_attn.v_proj": (_KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}


class Model:
    """A world with one model in it, made from a seed."""

    def __init__(self, folder: Path, number: int) -> None:
        draw = random.Random(f"model {number}")
        self.folder, self.dtype = folder / f"random-{number}", DTYPES[number % len(DTYPES)]
        shards = draw.choice((1, 2, 3))
        _weights(self.folder / "model", self.dtype, shards, seed=100 * number)
        _weights(self.folder / "other", self.dtype, shards, seed=100 * number + 50)
        (self.folder / "model" / "tokenizer.json").write_text("{}")
        (self.folder / "model" / "tokenizer.json").chmod(draw.choice((0o600, 0o640, 0o664)))
        (self.folder / "model" / "notes").mkdir()
        (self.folder / "model" / "notes").chmod(0o750)
        (self.folder / "model" / "notes" / "kept").write_bytes(b"\0\1")
        with suppress(OSError):  # a file system without them
            os.setxattr(self.folder / "model" / "config.json", "user.origin", b"drawn")
        _arrays(self.folder / "arrays.safetensors", seed=number)


def models_in(folder: Path, count: int = 12) -> list[Model]:
    """Those that the plans are drawn for."""
    os.umask(0o022)
    act.still()
    return [Model(folder, number) for number in range(count)]


def _weights(folder: Path, dtype: str, shards: int, seed: int) -> None:
    shapes = {"model.embed_tokens": (TOKENS, HIDDEN), "lm_head": (TOKENS, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in SHAPES.items()}
        shapes[f"model.layers.{layer}.input_layernorm"] = (HIDDEN,)
        shapes[f"model.layers.{layer}.post_attention_layernorm"] = (HIDDEN,)
    tensors = {
        f"{name}.weight": (dtype, random_tensor(shape, dtype=dtype, seed=seed + at))
        for at, (name, shape) in enumerate(shapes.items())
    }
    write_checkpoint(folder, tensors, shards=shards, config=CONFIG)


def _arrays(path: Path, seed: int) -> None:
    from builders import write_shard

    source = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {f"v{size}": (size,) for size in (_KV, HIDDEN, WIDE)}
    shapes |= {f"a{size}": (2, size) for size in (HIDDEN, WIDE)} | {
        f"b{size}": (size, 2) for size in (_KV, HIDDEN, WIDE)
    }
    shapes |= {"d1": (HIDDEN,), "d2": (HIDDEN,)}
    arrays = {name: source.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    write_shard(path, {name: ("F32", array.shape, array.tobytes()) for name, array in arrays.items()})


def _array(name: str) -> dict[str, str]:
    return {"file": "arrays.safetensors", "array": name}


Drawn = tuple[dict[str, Any], dict[str, Any]]


def _on(draw: random.Random, parts: tuple[str, ...] = tuple(SHAPES)) -> tuple[str, tuple[int, int]]:
    """A matrix of one layer: its name and shape."""
    part = draw.choice(parts)
    return f"model.layers.{draw.randrange(LAYERS)}.{part}.weight", SHAPES[part]


def _pointwise(draw: random.Random) -> dict[str, Any]:
    """A target of one tensor or several, and some of its elements."""
    matrix = _on(draw)[0]
    target: dict[str, Any] = draw.choice(
        (
            {"tensors": [matrix]},
            {"layers": str(draw.randrange(LAYERS))},
            {"roles": [draw.choice(("q_proj", "down_proj", "input_layernorm"))]},
            {"tensors": ["model.embed_tokens.weight"]},
            {"tensors": ["model.norm.weight", matrix]},
        )
    )
    if draw.random() < 0.4 and target == {"tensors": [matrix]}:
        target["elements"] = draw.choice(
            (
                {"kind": "rows", "indices": "0-2,5"},
                {"kind": "columns", "indices": "1,3-4"},
                {"kind": "magnitude_quantile", "above": 0.8},
                {"kind": "signed_quantile", "below": 0.3},
                {"kind": "value_range", "minimum": 0.0},
            )
        )
    return target


def _simple(kind: str, **fields: Callable[[random.Random], Any]) -> Callable[[random.Random], Drawn]:
    return lambda draw: (_pointwise(draw), {"kind": kind, **{name: field(draw) for name, field in fields.items()}})


def _matrix(kind: str, parts: tuple[str, ...] = tuple(SHAPES), **fields: Callable[..., Any]) -> Callable[..., Drawn]:
    def drawn(draw: random.Random) -> Drawn:
        name, shape = _on(draw, parts)
        return {"tensors": [name]}, {"kind": kind, **{key: field(draw, shape) for key, field in fields.items()}}

    return drawn


KINDS: dict[str, Callable[[random.Random], Drawn]] = {
    "scale": _simple("scale", factor=lambda draw: draw.choice((0.5, 1.1, 2.0, -1.0, draw.uniform(-3, 3)))),
    "shift": _simple("shift", offset=lambda draw: draw.uniform(-0.1, 0.1)),
    "clamp": _simple(
        "clamp", minimum=lambda draw: -draw.uniform(0.01, 0.05), maximum=lambda draw: draw.uniform(0, 0.05)
    ),
    "zero": _simple("zero"),
    "boost": _simple("boost", alpha=lambda draw: draw.uniform(0.5, 2)),
    "reduce": _simple("reduce", alpha=lambda draw: draw.uniform(0.5, 2)),
    "soft_threshold": _simple("soft_threshold", threshold=lambda draw: draw.uniform(0, 0.05)),
    "noise": _simple("noise", std=lambda draw: draw.uniform(0, 0.02), seed=lambda draw: draw.randrange(1000)),
    "normalize": _matrix(
        "normalize", norm=lambda d, s: d.uniform(0.5, 2), per=lambda d, s: d.choice(("rows", "whole"))
    ),
    "rank_reduce": _matrix("rank_reduce", rank=lambda d, s: d.randrange(1, min(s))),
    "spectral_scale": _matrix(
        "spectral_scale", first=lambda d, s: d.randrange(1, 4), factor=lambda d, s: d.uniform(0, 2)
    ),
    "spectral_clamp": _matrix("spectral_clamp", maximum=lambda d, s: d.uniform(0.05, 0.2)),
    "rank_one": _matrix("rank_one", u=lambda d, s: _array(f"v{s[0]}"), v=lambda d, s: _array(f"v{s[1]}")),
    "low_rank_add": _matrix("low_rank_add", a=lambda d, s: _array(f"a{s[1]}"), b=lambda d, s: _array(f"b{s[0]}")),
    "project_out": _matrix(
        "project_out", WRITERS + READERS, direction=lambda d, s: _array("d1"), strength=lambda d, s: d.uniform(0.2, 1)
    ),
    "rotate": _matrix(
        "rotate",
        WRITERS,
        first=lambda d, s: _array("d1"),
        second=lambda d, s: _array("d2"),
        angle=lambda d, s: d.uniform(5, 90),
    ),
    "blend": _matrix("blend", checkpoint=lambda d, s: "other", weight=lambda d, s: d.choice((1, d.random()))),
    "bake_steering": _matrix(
        "bake_steering",
        ("mlp.down_proj",),
        vector=lambda d, s: _array(f"v{s[0]}"),
        strength=lambda d, s: d.uniform(0.5, 2),
    ),
    "head_scale": lambda draw: (
        {"layers": str(draw.randrange(LAYERS))},
        {"kind": "head_scale", "heads": str(draw.randrange(HEADS)), "factor": draw.uniform(0, 2)},
    ),
    "neuron_scale": lambda draw: (
        {"layers": str(draw.randrange(LAYERS))},
        {"kind": "neuron_scale", "neurons": f"{draw.randrange(WIDE // 2)}-{WIDE // 2}", "factor": draw.uniform(0, 2)},
    ),
    "channel_scale": lambda draw: (
        {"layers": str(draw.randrange(LAYERS))},
        {"kind": "channel_scale", "channels": str(draw.randrange(HIDDEN)), "factor": draw.uniform(0, 2)},
    ),
}
_NEEDS_ROOM = ("bake_steering",)
"""Adds a tensor where there was none, which a change in place cannot."""


def tried(models: list[Model], seeds: range, world: Path, kinds: Counter[str] | None = None) -> Tally:
    """Try the plans of these seeds."""
    tally = Tally()
    for seed in seeds:
        draw = random.Random(f"plan {seed}")
        copied(draw.choice(models).folder, world)
        os.chdir(world)
        try:
            _one(tally, draw, world / "model", f"seed {seed}", kinds if kinds is not None else Counter())
        finally:
            os.chdir("/")
    shutil.rmtree(world, ignore_errors=True)
    return tally


def _one(tally: Tally, draw: random.Random, model: Path, said: str, kinds: Counter[str]) -> None:
    from planner.errors import PlannerError
    from planner.plan import Policy
    from planner.transaction import apply_plan, revert

    policy = Policy(largest_relative_change=1e9)
    low_space = act.VERBS["apply-low-space"].there and draw.random() < 0.3
    states, wanted = [_without_ledger(model)], draw.choice((1, 1, 1, 1, 2, 3))
    for _ in range(20 * wanted):
        if len(states) > wanted:
            break
        picked = draw.choices(
            [kind for kind in KINDS if not (low_space and kind in _NEEDS_ROOM)], k=draw.randrange(1, 4)
        )
        drawn = [dict(zip(("target", "operation"), KINDS[kind](draw), strict=True)) for kind in picked]
        options = {"low_space": True} if low_space else {}
        try:
            plan = plan_for(model, drawn, policy)
            apply_plan(
                plan, model, out=None, policy=policy, by="tester", folder=model.parent, allow_void=True, **options
            )
        except PlannerError:  # what was drawn makes no plan; that nothing happened is checked
            if _without_ledger(model) != states[-1]:
                tally.fault("mixed", f"{said}: a refused plan changed something")
            tally.states["refused"] += 1
            continue
        kinds.update(picked)
        states.append(_without_ledger(model))
        _only_planned(tally, drawn, states[-2], states[-1], said)
    tally.points += 1
    if len(states) == 1:
        tally.fault("stuck", f"{said}: nothing that was drawn could be applied")
    tally.states[f"{len(states) - 1} patches{' low on space' if low_space else ''}"] += 1
    options = {"low_space": True} if low_space and draw.random() < 0.5 else {}
    back = draw.randrange(len(states) - 1) if len(states) > 1 else 0
    for to in sorted({back, 0}, reverse=True) if len(states) > 1 else ():
        revert(model, to=to, by="tester", **options)
        found = _without_ledger(model)
        if found != states[to]:
            tally.fault("mixed", f"{said}, back to {to}: {difference(found, states[to])}")
    left = set(os.listdir(model.parent)) - {"model", "other", "arrays.safetensors"}
    if left:
        tally.fault("litter", f"{said}: {sorted(left)}")


def _without_ledger(model: Path) -> Snapshot:
    found = snapshot(model)
    assert found is not None
    return {name: entry for name, entry in found.items() if name.split("/")[0] != ".planner"}


def _only_planned(tally: Tally, drawn: list[dict[str, Any]], before: Snapshot, after: Snapshot, said: str) -> None:
    """The bytes of every tensor that no modification is about are what they were; and so is every other file."""
    from planner.plan import Target, resolve

    old, new = _tensors(before), _tensors(after)
    planned = {name for each in drawn for name in resolve(Target.model_validate(each["target"]), list(old))}
    # A steering vector goes into the bias of the weight that it is planned for.
    steered = [each for each in drawn if each["operation"]["kind"] == "bake_steering"]
    planned |= {name.replace(".weight", ".bias") for each in steered for name in each["target"]["tensors"]}
    stray = [name for name, content in old.items() if new.get(name) != content and name not in planned]
    stray += [name for name in new.keys() - old.keys() if name not in planned and _holds_something(name, new)]
    if stray:
        tally.fault("mixed", f"{said}: not planned, but changed: {', '.join(sorted(stray)[:5])}")
    may = (".safetensors", "config.json", ".index.json", "README.md")
    for name in before.keys() | after.keys():
        if not name.endswith(may) and before.get(name) != after.get(name):
            tally.fault("mixed", f"{said}: {name} changed")


def _holds_something(name: str, tensors: dict[str, tuple[str, bytes]]) -> bool:
    """Whether an added tensor holds anything; the config has one switch for all layers, so the others get zeros."""
    return any(tensors[name][1])


def _tensors(found: Snapshot) -> dict[str, tuple[str, bytes]]:
    """Dtype with shape, and bytes, of every tensor, read without the planner."""
    tensors = {}
    for name, entry in found.items():
        if name.endswith(".safetensors") and entry.content is not None:
            size = int.from_bytes(entry.content[:8], "little")
            header, data = json.loads(entry.content[8 : 8 + size]), entry.content[8 + size :]
            for tensor, about in header.items():
                if tensor != "__metadata__":
                    begin, end = about["data_offsets"]
                    tensors[tensor] = (f"{about['dtype']} {about['shape']}", data[begin:end])
    return tensors
