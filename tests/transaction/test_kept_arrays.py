"""A plan that reads arrays is kept together with them: what was applied can be resolved again from the ledger alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from snapshots import approved_plan, files, small_model

from planner.checkpoint import open_checkpoint
from planner.edits import resolved, surroundings_of
from planner.plan import Policy, read_plan
from planner.transaction import apply_plan, patch_folder, revert, verify


def vector_plan(model: Path, folder: Path, name: str = "factors.safetensors"):
    """A factor for every row of the first matrix, from a file in `folder`."""
    tensor = next(t for t in open_checkpoint(model).tensors.values() if len(t.shape) == 2)
    (folder / name).parent.mkdir(exist_ok=True)
    save_file({tensor.name: np.linspace(0.5, 1.5, tensor.shape[0], dtype=np.float32)}, folder / name)
    factor = {"file": name, "array": "{tensor}", "axis": "rows"}
    target = {"tensors": [tensor.name]}
    return tensor, approved_plan(model, {"target": target, "operation": {"kind": "scale", "factor": factor}})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


def test_the_arrays_are_kept_and_the_plan_resolves_without_the_original(model: Path, tmp_path: Path) -> None:
    before = files(model)
    tensor, plan = vector_plan(model, tmp_path)
    content = (tmp_path / "factors.safetensors").read_bytes()
    apply_plan(plan, model, out=None, policy=Policy(), by="tester", folder=tmp_path)
    patch = patch_folder(model, 1)
    assert (patch / "factors.safetensors").read_bytes() == content

    (tmp_path / "factors.safetensors").unlink()
    kept = read_plan((patch / "plan.json").read_text())
    edit = resolved(kept.modifications[0], surroundings_of(open_checkpoint(model), patch))
    assert np.allclose(edit.steps[tensor.name].arrays["factor"], np.linspace(0.5, 1.5, tensor.shape[0]))

    # A later patch carries the record over, and the way back does not need it.
    again = vector_plan(model, tmp_path)[1]
    apply_plan(again, model, out=None, policy=Policy(), by="tester", folder=tmp_path)
    assert (patch_folder(model, 1) / "factors.safetensors").read_bytes() == content
    revert(model, to=0, by="tester")
    assert verify(model).original
    assert files(model) == before


def test_files_elsewhere_stay_where_they_are(model: Path, tmp_path: Path) -> None:
    _, plan = vector_plan(model, tmp_path, "below/factors.safetensors")
    apply_plan(plan, model, out=None, policy=Policy(), by="tester", folder=tmp_path)
    assert sorted(path.name for path in patch_folder(model, 1).iterdir() if not path.name.startswith("undo")) == [
        "plan.json",
        "receipt.json",
    ]
