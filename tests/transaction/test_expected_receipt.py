"""A result that has to be the one that the same plan had elsewhere: else nothing happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from snapshots import approved_plan, change, everything, files, scale, small_model

from planner.errors import ResultDiffers, StorageError
from planner.plan import Policy
from planner.transaction import Receipt, apply_plan, verify

EDITS = (scale(1.02, layers="0-1"), {"target": {"layers": "2"}, "operation": {"kind": "shift", "offset": 0.01}})
WAYS = pytest.mark.parametrize("way", ["out", "in-place", "low-space"])


def _applied(model: Path, way: str, *edits: object, expected: Receipt | None) -> Receipt:
    plan = approved_plan(model, *(edits or EDITS))  # type: ignore[arg-type]
    out = model.parent / "out" if way == "out" else None
    return apply_plan(plan, model, out=out, policy=Policy(), by="here", low_space=way == "low-space", expected=expected)


@WAYS
def test_the_same_plan_on_the_same_base_has_the_result_of_elsewhere(tmp_path: Path, way: str) -> None:
    there, model = small_model(tmp_path / "there"), small_model(tmp_path / "here" / "model")
    expected = change(there, *EDITS)
    receipt = _applied(model, way, expected=expected)
    assert receipt.fingerprint_after == expected.fingerprint_after
    assert {t.name: t.after for t in receipt.tensors} == {t.name: t.after for t in expected.tensors}
    result = files(Path(receipt.path))
    assert {name: found for name, found in result.items() if name != "README.md"} == files(there)
    assert verify(Path(receipt.path)).sound


@WAYS
@pytest.mark.parametrize("differs", ["one tensor", "one more tensor", "one less", "the fingerprint alone"])
def test_another_result_is_refused_and_nothing_changes(tmp_path: Path, way: str, differs: str) -> None:
    model = small_model(tmp_path / "here" / "model")
    expected = change(model, *EDITS, out=tmp_path / "there")
    first, *others = expected.tensors
    wrong = {
        "one tensor": {"tensors": (first.model_copy(update={"after": others[0].after}), *others)},
        "one more tensor": {"tensors": (*expected.tensors, first.model_copy(update={"name": "another"}))},
        "one less": {"tensors": tuple(others)},
        "the fingerprint alone": {"fingerprint_after": expected.fingerprint_before},
    }[differs]
    named = {"one more tensor": "another", "the fingerprint alone": "config.json"}.get(differs, first.name)
    before = everything(model.parent)
    with pytest.raises(ResultDiffers, match=named) as caught:
        _applied(model, way, expected=expected.model_copy(update=wrong))
    assert caught.value.exit_status == StorageError.exit_status
    assert "nothing was changed" in str(caught.value.hint)
    assert everything(model.parent) == before


def test_the_receipt_of_another_plan_is_refused(tmp_path: Path) -> None:
    model = small_model(tmp_path / "here" / "model")
    expected = change(model, scale(1.03, layers="0-1"), EDITS[1], out=tmp_path / "there")
    before = everything(model.parent)
    with pytest.raises(ResultDiffers, match=r"model\.layers\.0\.mlp.*model\.layers\.1\.mlp"):
        _applied(model, "in-place", expected=expected)
    assert everything(model.parent) == before
