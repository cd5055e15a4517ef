"""Names that are no UTF-8, a locale of ASCII alone, numbers whose squares leave float64, a thousand nested folders."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from builders import a_plan, random_tensor, write_checkpoint

from planner.plan import decide, write_plan
from planner.transaction import read_ledger
from planner.transaction.state import files_of, folders_of

ODD = os.fsdecode(b"caf\xe9.txt")


def planned(model, path, **target):
    made = a_plan(model, {"target": target, "operation": {"kind": "scale", "factor": 1.02}})
    path.write_bytes(write_plan(decide(made, ["m01"], "approved", reviewer="ann")))
    return path


def tiny(folder):
    return write_checkpoint(folder, {"a.weight": ("BF16", random_tensor((8, 8)))})


def test_a_path_that_is_no_text_is_changed_verified_and_restored(planner, tmp_path):
    parent = tmp_path / os.fsdecode(b"par\xe9nt")
    parent.mkdir()
    model = tiny(parent / "model")
    plan = planned(model, tmp_path / "plan.json", tensors=["a.weight"])
    for command in (["apply", plan, "--model", model, "--in-place"], ["verify", model], ["revert", model]):
        result = planner(*command)
        assert result.status == 0, result.err
        assert "\\udce9" in result.out + result.err or command[0] == "revert"


def test_a_file_whose_name_is_no_text_is_not_taken_for_damage(planner, tmp_path):
    model = tiny(tmp_path / "model")
    (model / ODD).write_text("x")
    plan = planned(model, tmp_path / "plan.json", tensors=["a.weight"])
    assert planner("apply", plan, "--model", model, "--in-place").status == 0
    assert planner("verify", model).status == 0
    (model / ODD).write_text("y")
    found = planner("verify", model)
    assert found.status == 7
    assert "caf\\xe9.txt" in found.out
    (model / ODD).write_text("x")
    assert planner("revert", model).status == 0
    assert (model / ODD).read_text() == "x"


def test_a_locale_of_ascii_alone_says_other_names_in_escapes(planner, tmp_path):
    model = tiny(tmp_path / "model")
    (model / "é.txt").write_text("x")
    plan = planned(model, tmp_path / "plan.json", tensors=["a.weight"])
    assert planner("apply", plan, "--model", model, "--in-place").status == 0
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "planner", "verify", str(model)]

    def verified():
        return subprocess.run(command, env=os.environ | plain, capture_output=True, timeout=60, check=False)

    assert verified().returncode == 0, "the name is the same, whatever the locale calls it"
    (model / "é.txt").write_text("y")
    done = verified()
    assert done.returncode == 7
    assert b"damaged or missing file: \\xe9.txt" in done.stdout
    assert b"Error" not in done.stderr


@pytest.mark.parametrize("where", ["elsewhere", "in the target"])
def test_a_number_whose_square_is_beyond_float64_is_no_obstacle(planner, tmp_path, where):
    large = random_tensor((8, 8), dtype="F64", seed=1)
    large.view(np.float64)[0, 0] = 1e200
    model = write_checkpoint(
        tmp_path / "model", {"a.weight": ("F64", large), "b.weight": ("BF16", random_tensor((8, 8)))}
    )
    target = "b.weight" if where == "elsewhere" else "a.weight"
    plan = planned(model, tmp_path / "plan.json", tensors=[target])
    checked = planner("check", plan, "--model", model, "--json")
    assert "error" not in checked.json, checked.err
    applied = planner("apply", plan, "--model", model, "--in-place")
    assert "internal" not in applied.err
    if where == "elsewhere":
        assert checked.status == applied.status == 0
        assert 0 < checked.json["total_change"] < 1e-190
        assert read_ledger(model) is not None


def test_folders_a_thousand_deep_are_listed(tmp_path):
    before, depth = os.getcwd(), 1_200
    os.chdir(tmp_path)
    try:
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        with open("f", "w") as file:
            file.write("x")
    finally:
        os.chdir(before)
    try:
        assert len(list(folders_of(tmp_path))) == depth
        assert [name.count("/") for name in files_of(tmp_path)] == [depth]
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # shutil calls itself too
