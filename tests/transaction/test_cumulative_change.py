"""How far a checkpoint is from its original, all patches together; and the limit that the policy sets to that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint
from snapshots import ANY, change, everything, scale, stored

from planner.dtypes import FLOATS
from planner.errors import PlanRefused
from planner.plan import Policy
from planner.transaction import Receipt, read_ledger, revert

DTYPES = dict(zip((f"model.layers.{layer}.w.weight" for layer in range(4)), ("BF16", "F32", "F16", "F64"), strict=True))
ALL = {"tensors": list(DTYPES)}
EDITS: list[dict[str, Any]] = [
    scale(1.2, **ALL),
    {"target": {"layers": "1-3"}, "operation": {"kind": "noise", "std": 0.02, "seed": 3}},
    {"target": {"layers": "0-1"}, "operation": {"kind": "rank_reduce", "rank": 9}},
    scale(0.9, layers="0,2"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {
        name: (dtype, random_tensor((40, 24), dtype=dtype, seed=seed))
        for seed, (name, dtype) in enumerate(DTYPES.items())
    }
    return write_checkpoint(tmp_path / "model", tensors, shards=2)


def _values(model: Path) -> dict[str, Any]:
    return {
        name: FLOATS[DTYPES[name]].decode(raw.view(FLOATS[DTYPES[name]].pattern)).astype(np.float64)
        for name, raw in stored(model).items()
    }


def _distances(model: Path, original: dict[str, Any]) -> dict[str, float]:
    """‖W - W₀‖F/‖W₀‖F, from the bytes as they are."""
    return {
        name: float(np.linalg.norm(now - original[name]) / np.linalg.norm(original[name]))
        for name, now in _values(model).items()
    }


def _largest(model: Path) -> float | None:
    ledger = read_ledger(model)
    assert ledger is not None
    return ledger.events[-1].largest_change


def _said(receipt: Receipt) -> dict[str, float | None]:
    return {tensor.name: tensor.cumulative_change for tensor in receipt.tensors}


@pytest.mark.parametrize("low", [False, True], ids=["two copies", "low space"])
def test_it_is_measured_against_the_original_weights(model: Path, low: bool) -> None:
    original = _values(model)
    for edit in EDITS:
        receipt = change(model, edit, policy=ANY, low_space=low)
        found = _distances(model, original)
        said = _said(receipt)
        assert said == pytest.approx({name: found[name] for name in said}, rel=1e-6)
        assert _largest(model) == pytest.approx(max(found.values()), rel=1e-6)
    # On the way back the ledger's receipts are of the patches in force; the next one is measured anew.
    revert(model, to=1, by="tester")
    receipt = change(model, EDITS[3], policy=ANY)
    found = _distances(model, original)
    assert _said(receipt) == pytest.approx({name: found[name] for name in _said(receipt)}, rel=1e-6)
    assert _largest(model) == pytest.approx(max(found.values()), rel=1e-6)


@pytest.mark.parametrize("low", [False, True], ids=["two copies", "low space"])
def test_what_goes_too_far_in_small_steps_is_refused(model: Path, low: bool) -> None:
    policy = Policy(largest_relative_change=0.2, largest_cumulative_change=0.35)
    change(model, scale(1.15, **ALL), policy=policy)
    change(model, scale(1.15, layers="0-1"), policy=policy)  # 0.3225 together
    before = everything(model.parent)
    with pytest.raises(PlanRefused) as caught:
        change(model, scale(1.05, layers="1-3"), policy=policy, low_space=low)  # 0.389 there, 0.2 in the others
    assert len(caught.value.problems) == 1
    assert "model.layers.1.w.weight" in caught.value.problems[0]
    assert "largest_cumulative_change = 0.35" in caught.value.problems[0]
    assert everything(model.parent) == before
    change(model, scale(1.05, layers="2-3"), policy=policy, low_space=low)
    change(model, scale(0.9, layers="1"), policy=policy, low_space=low)  # back is always possible
    revert(model, to=1, by="tester")
    change(model, scale(1.05, layers="1-3"), policy=policy, low_space=low)


def test_a_copy_of_a_patched_checkpoint_begins_where_that_was(model: Path, tmp_path: Path) -> None:
    """Its own original are the patched weights; how far they may be from the first ones is carried on."""
    original = _values(model)
    change(model, EDITS[0], policy=ANY)
    change(model, EDITS[1], policy=ANY)
    exact = _distances(model, original)
    out, second = tmp_path / "out", tmp_path / "second"
    change(model, EDITS[3], out=out, policy=ANY)
    ledger = read_ledger(out)
    assert ledger is not None
    assert ledger.inherited == pytest.approx(exact, rel=1e-6)
    change(out, EDITS[2], policy=ANY)
    change(out, EDITS[1], out=second, policy=ANY)
    for result in (out, second):
        found, ledger = _distances(result, original), read_ledger(result)
        assert ledger is not None
        receipts = [Receipt.model_validate_json(path.read_text()) for path in sorted(result.rglob("receipt.json"))]
        bounds = dict(ledger.inherited)
        for receipt in receipts:
            bounds |= {name: bound for name, bound in _said(receipt).items() if bound is not None}
        assert all(found[name] <= bounds[name] * (1 + 1e-9) for name in found)
        assert all(bounds[name] < 3 * found[name] for name in found)  # a bound that says something
        assert ledger.events[-1].largest_change == pytest.approx(max(bounds.values()))
    limit = Policy(largest_relative_change=1, largest_cumulative_change=0.2)
    with pytest.raises(PlanRefused, match="too far"):  # the step is small, the way to here was not
        change(model, scale(1.01, layers="1"), out=tmp_path / "third", policy=limit)
    assert not (tmp_path / "third").exists()


def test_a_tensor_of_zeros_has_no_distance(tmp_path: Path) -> None:
    tensors = {"a.weight": ("F32", np.zeros((4, 4), "<u4")), "b.weight": ("F32", random_tensor((4, 4), dtype="F32"))}
    model = write_checkpoint(tmp_path / "model", tensors)
    change(model, scale(2.0, tensors=["b.weight"]), policy=ANY)
    ledger = read_ledger(model)
    assert ledger is not None
    assert ledger.events[-1].largest_change == pytest.approx(1.0)
