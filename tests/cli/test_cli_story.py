"""The whole story through the command line: from a profile to a reverted patch, for people and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from planner.effects import CheckReport
from planner.evaluation import Evaluation
from planner.plan import Plan
from planner.profile import Profile
from planner.transaction import Receipt, Verification


def test_from_profile_to_revert_every_byte_comes_back(planner, tiny_model, tmp_path, suite, everything):
    before = everything(tiny_model)
    plan, patched = tmp_path / "plan.json", tmp_path / "patched"

    assert "652,896 parameters" in planner("profile", tiny_model).out
    proposal = planner("propose", tiny_model, "--goal", "fewer mistakes", "--analyst", "rules", "--out", plan)
    assert proposal.status == 0
    assert "m01" in proposal.out
    assert f"wrote {plan}" in proposal.err
    checked = planner("check", plan, "--model", tiny_model)
    assert checked.status == 0
    assert "accepted" in checked.out
    reviewed = planner("review", plan, "--model", tiny_model, "--approve", "m01", "m02", "--reviewer", "ann")
    assert "m01  approved by ann" in reviewed.out
    assert "m03  undecided" in reviewed.out
    assert planner("review", plan, "--model", tiny_model, "--reject", "m03", "--why", "no need").status == 0
    applied = planner("apply", plan, "--model", tiny_model, "--out", patched)
    assert applied.status == 0
    assert "patch 1 is in force" in applied.out
    assert "fewer mistakes" in planner("log", patched).out
    assert "as the ledger says" in planner("verify", patched).out
    assert "2 of 68 tensors differ" in planner("diff", tiny_model, patched).out
    evaluated = planner("evaluate", patched, "--baseline", tiny_model, "--suite", suite(10))
    assert evaluated.status == 0
    assert "stories" in evaluated.out
    reverted = planner("revert", patched)
    assert reverted.status == 0
    assert "(the same)" in reverted.out
    assert "as before the first patch" in planner("verify", patched).out
    assert "no patch; this is the original" in planner("log", patched).out
    assert "the same bytes in all 68 tensors" in planner("diff", tiny_model, patched).out

    left = {name: data for name, data in everything(patched).items() if not name.startswith(".planner")}
    assert left == before, "the reverted copy is the original, file by file"
    assert everything(tiny_model) == before, "the model itself was only read"


def test_in_place_and_back(planner, tiny_model, approved, everything):
    before = everything(tiny_model)
    applied = planner("apply", approved, "--model", tiny_model, "--in-place", "--json")
    assert applied.status == 0
    assert applied.json["in_place"] is True
    assert everything(tiny_model) != before
    again = planner("apply", approved, "--model", tiny_model, "--in-place")
    assert again.status == 4, "the plan was made for the weights before the patch"
    assert planner("revert", tiny_model, "--to", "0").status == 0
    assert {k: v for k, v in everything(tiny_model).items() if not k.startswith(".planner")} == before
    assert planner("revert", tiny_model).status == 2, "there is nothing left to take back"


FIELDS: dict[str, dict[str, Any]] = {
    "profile": {"fingerprint": str, "parameters": int, "bytes": int, "tensors": list},
    "tensor": {
        "name": str,
        "role": str,
        "layer": (int, type(None)),
        "dtype": str,
        "shape": list,
        **dict.fromkeys(("mean", "std", "min", "max", "abs_max", "rms", "l2_norm", "skewness", "kurtosis"), float),
        **dict.fromkeys(("zeros", "nan", "inf", "distinct_values"), int),
        "quantiles": dict,
        "outliers": dict,
    },
    "plan": {"schema": str, "id": str, "created": str, "goal": str, "checkpoint": dict, "analyst": dict},
    "check": {"accepted": bool, "problems": list, "modifications": list, "plan_effect": str},
    "checked tensor": {
        "name": str,
        "effect": str,
        "why": str,
        "changed_fraction": float,
        "realised_scale": float,
        "relative_change": float,
        "before": dict,
        "after": dict,
    },
    "evaluation": {"metrics": list, "drift": dict, "gates": list, "accepted": bool},
    "metric": {
        "name": str,
        "n": int,
        "baseline": float,
        "candidate": float,
        "difference": float,
        "interval": list,
        "p_value": float,
        "test": str,
        "better": str,
        "verdict": str,
        "calibrated": dict,
    },
    "calibrated": {"difference": float, "interval": list, "p_value": float, "temperatures": dict},
    "drift": {"kl_mean": float, "kl_p99": float, "top1_agreement": float},
    "gate": {"name": str, "passed": bool, "why": str},
}


def has_fields(document: dict[str, Any], kind: str) -> None:
    for name, wanted in FIELDS[kind].items():
        assert name in document, f"{kind} lacks {name}"
        assert isinstance(document[name], wanted), f"{kind}.{name} is {document[name]!r}"


def test_every_json_document_is_alone_on_stdout_and_keeps_the_contract(planner, tiny_model, tmp_path, suite):
    plan, patched = tmp_path / "plan.json", tmp_path / "patched"

    profile = planner("profile", tiny_model, "--json").json
    has_fields(profile, "profile")
    for tensor in profile["tensors"]:
        has_fields(tensor, "tensor")
        assert list(tensor["quantiles"]) == ["0.001", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "0.999"]
        assert {"3", "6"} <= tensor["outliers"].keys()
    Profile.model_validate(profile)

    proposed = planner("propose", tiny_model, "--goal", "g", "--out", plan, "--json").json
    has_fields(proposed, "plan")
    assert proposed == json.loads(plan.read_text()), "what is printed is what is written"
    Plan.model_validate(proposed)

    check = planner("check", plan, "--model", tiny_model, "--json").json
    has_fields(check, "check")
    for modification in check["modifications"]:
        for tensor in modification["tensors"]:
            has_fields(tensor, "checked tensor")
    CheckReport.model_validate(check)

    receipt = planner("apply", plan, "--model", tiny_model, "--out", patched, "--yes", "--json")
    assert receipt.status == 0
    Receipt.model_validate(receipt.json)
    log = planner("log", patched, "--json").json
    assert [event["kind"] for event in log["events"]] == ["applied"]
    assert log["in_force"] == [1]
    assert planner("log", tiny_model, "--json").json["events"] == []
    Verification.model_validate(planner("verify", patched, "--json").json)
    assert planner("diff", tiny_model, patched, "--json").json["identical"] is False

    evaluation = planner("evaluate", patched, "--baseline", tiny_model, "--suite", suite(10), "--json").json
    has_fields(evaluation, "evaluation")
    has_fields(evaluation["metrics"][0], "metric")
    has_fields(evaluation["metrics"][0]["calibrated"], "calibrated")
    has_fields(evaluation["drift"], "drift")
    has_fields(evaluation["gates"][0], "gate")
    assert evaluation["metrics"][0]["calibrated"]["temperatures"].keys() == {"baseline", "candidate"}
    Evaluation.model_validate(evaluation)

    assert planner("revert", patched, "--json").json["original"] is True
    assert planner("verify", patched, "--json").json["original"] is True
    recovered = planner("recover", patched, "--json").json
    assert recovered["removed"] == []


def test_a_second_profile_reads_no_weight(planner, tiny_model, monkeypatch):
    monkeypatch.setattr("planner.profile.store.SETTLED_NS", 0)
    first = planner("profile", tiny_model, "--json").json

    def read_again(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were read a second time")

    with monkeypatch.context() as patch:
        patch.setattr("planner.profile.profiler.profile_checkpoint", read_again)
        assert planner("profile", tiny_model, "--json").json == first
        assert planner("profile", tiny_model, "--force").status == 1, "--force reads them"
    assert planner("profile", tiny_model, "--force").status == 0


def test_files_for_later_are_written_where_they_were_asked_for(planner, tiny_model, tmp_path, suite):
    assert planner("profile", tiny_model, "--out", tmp_path / "new" / "folder").status == 0
    Profile.model_validate_json((tmp_path / "new" / "folder" / "profile.json").read_text())
    out = tmp_path / "evaluation.json"
    assert planner("evaluate", tiny_model, "--baseline", tiny_model, "--suite", suite(0), "--out", out).status == 0
    assert Evaluation.model_validate_json(out.read_text()).accepted


def test_recover_says_what_it_removed_and_that_the_rest_is_whole(planner, tiny_model):
    stage = tiny_model.with_name(".tiny-model.planner-stage-0badcafe")
    stage.mkdir()
    found = planner("recover", tiny_model)
    assert found.status == 0
    assert f"cleaned up {stage}" in found.out
    assert "is whole" in found.out
    assert not stage.exists()


def test_recover_knows_an_output_that_was_never_finished(planner, tmp_path):
    stage = tmp_path / ".patched.planner-stage-0badcafe"
    stage.mkdir()
    assert "was never written" in planner("recover", tmp_path / "patched").out
    assert not stage.exists()
    assert planner("recover", tmp_path / "no" / "such" / "place").status == 9


def test_verify_names_the_damage(planner, tiny_model, approved, tmp_path):
    patched = tmp_path / "patched"
    assert planner("apply", approved, "--model", tiny_model, "--out", patched).status == 0
    shard = patched / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (patched / "notes.txt").write_text("mine")
    found = planner("verify", patched)
    assert found.status == 7
    assert "damaged tensor: model." in found.out
    assert f"damaged or missing file: {shard.name}" in found.out
    assert "added since: notes.txt" in found.out
    assert planner("revert", patched).status == 7, "a patch is not taken back from damaged weights"


def test_diff_explains_and_names_what_only_one_side_has(planner, tmp_path, tiny_model, approved):
    from builders import random_tensor, write_checkpoint

    one = write_checkpoint(tmp_path / "one", {"a.weight": ("BF16", random_tensor((8, 8)))})
    two = write_checkpoint(tmp_path / "two", {"b.weight": ("BF16", random_tensor((8, 8)))})
    found = planner("diff", one, two)
    assert f"only in {one}: a.weight" in found.out
    assert f"only in {two}: b.weight" in found.out


@pytest.mark.parametrize("colour", [{}, {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1"}])
def test_without_a_terminal_there_are_no_colours_and_no_bars(tiny_model, tmp_path, colour):
    """In real processes, because what a terminal is shows only there."""
    plan = tmp_path / "plan.json"
    for arguments in (
        ["profile", tiny_model],
        ["propose", tiny_model, "--goal", "g", "--out", plan],
        ["check", plan, "--model", tiny_model],
        ["check", plan],
        ["--help"],
    ):
        found = subprocess.run(
            [sys.executable, "-m", "planner", *map(str, arguments)],
            capture_output=True,
            env=os.environ | colour,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        assert b"\x1b" not in found.stdout + found.stderr, arguments
        assert b"\r" not in found.stdout + found.stderr, arguments


def test_long_names_are_not_cut_without_a_terminal(planner, tmp_path):
    from builders import a_plan, random_tensor, write_checkpoint

    from planner.plan import write_plan

    name = "model.layers.0." + "x" * 300 + ".weight"
    model = write_checkpoint(tmp_path / "m", {name: ("BF16", random_tensor((8, 8)))})
    plan = tmp_path / "plan.json"
    plan.write_bytes(write_plan(a_plan(model, {"target": {"tensors": [name]}, "operation": {"kind": "zero"}})))
    assert name in planner("check", plan, "--model", model).out


def test_the_version_and_the_help(planner):
    from planner import __version__

    assert planner("--version").out == f"planner {__version__}\n"
    bare = planner()
    assert bare.status == 2
    assert bare.out == planner("--help").out
