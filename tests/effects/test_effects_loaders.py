"""Checkpoints that store a tied head beside its embedding: the verdict against what either way of loading computes."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from catalogue import DECLARED, Edits, Patient
from models.tiny import build, logits
from proving import TRUE_OF, truth
from test_effects_compensations import random_edit, random_plan

from planner.effects.changes import Change
from planner.effects.verdicts import Judge

TIED = [key for key in DECLARED if build(key).tied]
FEW = TIED if os.environ.get("PLANNER_SWEEP") else TIED[::2]
PLANS = 20 if os.environ.get("PLANNER_SWEEP") else 5


def two_copies(key: str, *, apart: bool = False) -> Patient:
    """A model that stores both copies; `apart`: different ones."""
    tiny = build(key, with_copy=True)
    if apart:
        moved = tiny.tensors[tiny.output] + np.random.default_rng(1).normal(0, 0.2, tiny.tensors[tiny.output].shape)
        tiny = dataclasses.replace(tiny, tensors={**tiny.tensors, tiny.output: moved})
    patient = Patient(key, tiny)
    patient.judge = dataclasses.replace(patient.judge, copies_differ=apart)
    return patient


def outcomes(p: Patient, edits: Edits) -> tuple[str, str, bool]:
    """The class for loaders before transformers 5 and from it on, and whether they compute the same."""
    new = {name: values for name, (values, _) in edits.items()}
    kinds, after = [], []
    for loader in ("v4", "v5"):
        before = logits(p.tiny, {}, tiny_eps=True, loader=loader)
        after.append(logits(p.tiny, new, tiny_eps=True, loader=loader))
        kinds.append(truth(p.tiny, before, after[-1]))
    size = max(float(np.abs(one).max()) for one in after)
    return kinds[0], kinds[1], float(np.abs(after[0] - after[1]).max()) <= 1e-9 * size


def agrees(p: Patient, edits: Edits) -> str:
    """What is wrong with the verdict; "" where nothing is."""
    both = [edits[name][0] if name in edits else p.tiny.tensors[name] for name in (p.tiny.input, p.tiny.output)]
    tie_kept = p.tiny.input in edits and p.tiny.output in edits and np.array_equal(*both)
    found = p.judge.verdict({name: change for name, (_, change) in edits.items()}, tie_kept=tie_kept)
    old, new, alike = outcomes(p, edits)
    said = f"{p.key} {list(edits)}: {found.effect} ({found.why}), but {old} and {new}"
    if found.effect == "unknown":
        return ""
    if found.effect == "loader_dependent":
        return said if old == new else ""
    if old != new:
        return said
    touched = p.tiny.input in edits or p.tiny.output in edits
    if touched and not alike and old != "same" and "loaders then disagree" not in found.why:
        return said
    return "" if old in (TRUE_OF | {"ignored": {"same"}})[found.effect] else said


def whole(p: Patient, name: str, factor: float) -> Edits:
    return {name: (p.tiny.tensors[name] * factor, Change(rows=factor))}


@pytest.mark.parametrize("key", TIED)
def test_edits_of_one_copy_or_both(key: str) -> None:
    p = two_copies(key)
    head, embedding = p.tiny.output, p.tiny.input
    row = np.random.default_rng(2).normal(0, 0.2, (1, p.tiny.tensors[head].shape[1]))
    vector = (p.tiny.tensors[head] + row, Change(added="same_rows"))
    inert = next(
        (x for x in p.map.in_layer(1) if p.judge.verdict({x.name: Change(rows=2.0)}).effect == "invariant"), None
    )
    wrong = [
        agrees(p, whole(p, head, 1.03)),
        agrees(p, whole(p, embedding, 1.02)),
        agrees(p, whole(p, head, 1.03) | whole(p, embedding, 1.02)),
        agrees(p, whole(p, head, 1.02) | whole(p, embedding, 1.02)),
        agrees(p, whole(p, head, -1.0)),
        agrees(p, whole(p, head, 0.0)),
        agrees(p, {head: vector}),
        agrees(p, {head: vector, embedding: vector}),
        agrees(p, whole(p, next(p.map.in_layer(1, "output", "down")).name, 1.05)),
    ]
    if inert:
        wrong.append(agrees(p, whole(p, head, 1.03) | whole(p, inert.name, 1.1)))
        wrong.append(agrees(p, whole(p, inert.name, 1.1)))
    assert not any(wrong), "\n".join(filter(None, wrong))


def test_the_reason_says_what_each_loader_makes_of_it() -> None:
    p = two_copies("qwen3-tied")
    head = p.judge.verdict({"lm_head.weight": Change(rows=1.03)})
    assert head.effect == "loader_dependent"
    assert "transformers before 5, and vLLM before August 2026, take the embedding for the head (ignored" in head.why
    assert "from 5 on" in head.why
    assert "rescales_logits: lm_head: all logits are multiplied by 1.03" in head.why
    both = p.judge.verdict({"lm_head.weight": Change(rows=2.0), p.tiny.input: Change(rows=2.0)}, tie_kept=True)
    assert both.effect == "effective"


@pytest.mark.parametrize("key", FEW)
def test_copies_that_differ_already(key: str) -> None:
    p = two_copies(key, apart=True)
    head, embedding = p.tiny.output, p.tiny.input
    wrong = [
        agrees(p, whole(p, head, 1.03)),
        agrees(p, whole(p, embedding, 1.02)),
        agrees(p, whole(p, next(p.map.in_layer(1, "output", "down")).name, 1.05)),
    ]
    assert not any(wrong), "\n".join(filter(None, wrong))
    norm = next(p.map.in_layer(None, "final_norm"), None)
    if norm:
        assert not agrees(p, whole(p, norm.name, 1.5))


@pytest.mark.parametrize("key", FEW)
def test_random_plans_that_touch_a_copy(key: str) -> None:
    p = two_copies(key)
    random = np.random.default_rng(TIED.index(key))
    wrong = []
    for _ in range(PLANS):
        name = str(random.choice([p.tiny.output, p.tiny.input]))
        edits = random_edit(p, name, random)
        if random.random() < 0.6:
            edits = random_plan(p, random) | edits
        wrong.append(agrees(p, edits))
    assert not any(wrong), "\n".join(filter(None, wrong))


def test_tensors_that_no_loader_or_only_some_read() -> None:
    p = Patient("deepseek_v3")
    extra = "model.layers.3.eh_proj.weight"
    p.map.read_elsewhere[extra] = "other loaders may read it"
    p.map.unread["model.rotary_emb.inv_freq"] = "no loader reads it"
    judge = Judge(p.map)
    changed = Change(rows=2.0)
    assert judge.verdict({}).effect == "void"
    assert judge.verdict({"model.rotary_emb.inv_freq": changed}).effect == "ignored"
    assert judge.verdict({extra: changed}).effect == "loader_dependent"
    assert judge.verdict({"model.rotary_emb.inv_freq": changed, extra: changed}).effect == "loader_dependent"
    inert, real = "model.layers.1.self_attn.q_a_proj.weight", "model.layers.1.self_attn.o_proj.weight"
    assert judge.verdict({inert: changed, "model.rotary_emb.inv_freq": changed}).effect == "invariant"
    assert judge.verdict({inert: changed, extra: changed}).effect == "loader_dependent"
    assert judge.verdict({real: changed, extra: changed}).effect == "effective"
    assert judge.verdict({"model.layers.1.strange.weight": changed}).effect == "unknown"
    assert Judge(p.map).verdict({inert: Change()}).effect == "invariant"
