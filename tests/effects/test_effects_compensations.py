"""Plans of several edits that undo one another, and plans that only look so: verdict against transformers' logits.

By default the claims of a family are put together into a few plans, because one false claim would show in the whole;
with PLANNER_SWEEP each is tried by itself.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from catalogue import CATALOGUE, DECLARED, Edits, Patient, merged
from proving import TRUE_OF

from planner.effects.changes import Change

SWEEP = bool(os.environ.get("PLANNER_SWEEP"))
PLANS = 40 if SWEEP else 6
"""Random plans for each family."""

KINDS = ("scale", "scale", "scale", "rows", "columns", "constant", "same_rows", "same_columns", "noise", "zero")
FACTORS = (2.0, 0.5, -1.0, -2.0, -0.5, 4.0, 0.25)


def random_edit(p: Patient, name: str, random: np.random.Generator) -> Edits:
    """One edit of one tensor. Few factors, so that edits of neighbours often undo one another."""
    old = p.tiny.tensors[name]
    matrix = old.reshape(-1, old.shape[-1])
    rows, columns = matrix.shape
    kind = str(random.choice(KINDS))
    factor = float(random.choice(FACTORS))
    some = np.where(np.arange(64) < 8, factor, 1.0)
    if kind == "zero":
        new, change = matrix * 0, Change(rows=0.0)
    elif kind == "rows" and rows > 1:
        along = np.resize(some, rows)
        new, change = matrix * along[:, None], Change(rows=along)
    elif kind == "columns":
        along = np.resize(some, columns)
        new, change = matrix * along, Change(columns=along)
    elif kind == "constant":
        new, change = matrix + 0.3, Change(added="constant")
    elif kind == "same_rows" and rows > 1:
        new, change = matrix + random.normal(0, 0.2, (1, columns)), Change(added="same_rows")
    elif kind == "same_columns" and rows > 1:
        new, change = matrix + random.normal(0, 0.2, (rows, 1)), Change(added="same_columns")
    elif kind == "noise":
        new, change = matrix + random.normal(0, 0.1, matrix.shape), Change(rows=float("nan"))
    else:
        new, change = matrix * factor, Change(rows=factor)
    return {name: (new.reshape(old.shape), change)}


def random_plan(p: Patient, random: np.random.Generator) -> Edits:
    """One to four edits, of neighbours more often than not; or an entry of the catalogue and an edit beside it."""
    layer = 1 if random.random() < 0.8 else None
    near = [x.name for x in p.map.in_layer(layer)] or list(p.tiny.tensors)
    names = near if random.random() < 0.8 else list(p.tiny.tensors)
    chosen = random.choice(names, size=min(len(names), int(random.integers(1, 5))), replace=False)
    found = merged(*(random_edit(p, str(name), random) for name in chosen))
    if random.random() < 0.4:
        plan, _ = CATALOGUE[str(random.choice(list(CATALOGUE)))]
        whole = plan(p)
        if whole:
            beside = {n: e for n, e in found.items() if n not in whole}
            found = whole | dict(list(beside.items())[: int(random.integers(0, 2))])
    return found


def right(p: Patient, label: str, edits: Edits) -> str:
    """What is wrong with the verdict; "" where nothing is."""
    effect, why = p.verdict(edits)
    if effect == "unknown":
        return ""
    kind = p.truth(edits)
    return "" if kind in TRUE_OF[effect] else f"{p.key}, {label}: {effect} ({why}), but {kind}"


@pytest.mark.parametrize("key", DECLARED)
def test_compensations_hold_where_they_are_said_to_and_nowhere_else(key: str) -> None:
    p = Patient(key)
    random = np.random.default_rng(DECLARED.index(key))
    claimed: list[Edits] = []
    wrong = []
    for label, (plan, exceptions) in CATALOGUE.items():
        edits = plan(p)
        if not edits:
            continue
        effect, why = p.verdict(edits)
        held = effect in ("invariant", "shifts_logits", "rescales_logits")
        assert held == (key not in exceptions), (label, effect, why)
        if SWEEP or (not held and random.random() < 0.15) or effect in ("shifts_logits", "rescales_logits"):
            wrong.append(right(p, label, edits))
        if effect == "invariant":
            claimed.append(edits)
    while claimed:  # plans of different tensors together: one false claim shows in the whole
        whole: Edits = {}
        left = []
        for edits in claimed:
            if set(edits) & set(whole):
                left.append(edits)
            else:
                whole |= edits
        claimed = left
        assert p.verdict(whole)[0] == "invariant"
        wrong.append(right(p, "together", whole))
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize("key", DECLARED)
def test_random_plans_are_judged_rightly(key: str) -> None:
    p = Patient(key)
    random = np.random.default_rng(1000 + DECLARED.index(key))
    plans = [random_plan(p, random) for _ in range(PLANS)]
    wrong = [right(p, f"plan {number}: {list(edits)}", edits) for number, edits in enumerate(plans)]
    assert not any(wrong), "\n".join(filter(None, wrong))
