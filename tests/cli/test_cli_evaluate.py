"""`planner evaluate`: which plan the controls resemble, and what is said of them."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def patched(planner, approved, tiny_model, tmp_path):
    """The checkpoint that the approved plan makes."""
    out = tmp_path / "patched"
    assert planner("apply", approved, "--model", tiny_model, "--out", out).status == 0
    return out


def test_the_ledger_says_which_plan_it_was(planner, patched, tiny_model, suite):
    arguments = ("evaluate", patched, "--baseline", tiny_model, "--suite", suite(10), "--controls", 3)
    found = planner(*arguments, "--json")
    controls = found.json["controls"]
    assert controls["metric"] == "stories"
    assert controls["random"]["n"] == controls["random"]["asked"] == 3
    receipt = json.loads((patched / ".planner" / "patches" / "0001" / "receipt.json").read_text())
    assert sum(controls["random"]["methods"].values()) == len(receipt["tensors"])
    shown = planner(*arguments).out
    random = controls["random"]
    assert f"better than {3 - random['as_good']} of 3 random plans of the same strengths (z = " in shown
    assert "; temperature alone would gain nothing (+" in shown
    assert "noise floor: " in shown


def test_a_plan_file_says_it_where_there_is_no_ledger(planner, patched, approved, tiny_model, suite, tmp_path):
    import shutil

    arguments = ("--baseline", tiny_model, "--suite", suite(10), "--controls", 2)
    by_ledger = planner("evaluate", patched, *arguments, "--json").json["controls"]["random"]
    bare = shutil.copytree(patched, tmp_path / "bare", ignore=shutil.ignore_patterns(".planner"))
    without = planner("evaluate", bare, *arguments)
    assert "no random plans: the candidate has no ledger; --plan FILE names the plan" in without.out
    assert "noise floor: " in without.out
    given = planner("evaluate", bare, *arguments, "--plan", approved, "--json").json["controls"]
    assert given["random"] == by_ledger
    assert given["no_random"] is None


def test_rejected_modifications_are_not_in_the_plan(planner, proposed, tiny_model, suite, tmp_path):
    names = [modification["id"] for modification in json.loads(proposed.read_text())["modifications"]]
    assert len(names) > 1
    planner("review", proposed, "--model", tiny_model, "--approve", names[0], "--reviewer", "ann")
    planner("review", proposed, "--model", tiny_model, "--reject", *names[1:2], "--why", "no", "--reviewer", "ann")
    for name in names[2:]:
        planner("review", proposed, "--model", tiny_model, "--reject", name, "--why", "no", "--reviewer", "ann")
    out = tmp_path / "patched"
    assert planner("apply", proposed, "--model", tiny_model, "--out", out).status == 0
    receipt = json.loads((out / ".planner" / "patches" / "0001" / "receipt.json").read_text())
    arguments = ("evaluate", out, "--baseline", tiny_model, "--suite", suite(10), "--controls", 1, "--json")
    for more in ((), ("--plan", proposed)):
        methods = planner(*arguments, *more).json["controls"]["random"]["methods"]
        assert sum(methods.values()) == len(receipt["tensors"])


def test_a_stale_plan_is_refused(planner, patched, approved, tiny_model, suite):
    found = planner("evaluate", tiny_model, "--baseline", patched, "--suite", suite(10), "--plan", approved)
    assert found.status == 4
    assert "error[stale-plan]: the baseline is" in found.err


def test_another_baseline_than_the_ledgers(planner, patched, tiny_model, suite):
    found = planner("evaluate", tiny_model, "--baseline", patched, "--suite", suite(10), "--controls", 1)
    assert "no random plans: the candidate has no ledger" in found.out
    found = planner("evaluate", patched, "--baseline", patched, "--suite", suite(10), "--controls", 1)
    assert "no random plans: the baseline is not what the candidate's ledger says" in found.out


def test_two_patches_are_one_plan(planner, patched, approved, tiny_model, suite):
    first = planner("evaluate", patched, "--baseline", tiny_model, "--suite", suite(10), "--controls", 1, "--json").json
    more = json.loads(approved.read_text())
    fingerprint = json.loads((patched / ".planner" / "ledger.json").read_text())["current"]["fingerprint"]
    more["checkpoint"]["fingerprint"] = fingerprint
    target = {"tensors": ["model.norm.weight"]}
    more["modifications"] = [
        more["modifications"][0]
        | {"id": "n01", "target": target, "operation": {"kind": "scale", "factor": 0.9}, "evidence": []}
    ]
    more["review"] = {}
    second = approved.with_name("second.json")
    second.write_text(json.dumps(more))
    assert planner("apply", second, "--model", patched, "--in-place", "--yes").status == 0
    arguments = ("evaluate", patched, "--baseline", tiny_model, "--suite", suite(10), "--controls", 1, "--json")
    both = planner(*arguments).json["controls"]["random"]["methods"]
    before = first["controls"]["random"]["methods"]
    touched = "model.norm.weight" in json.dumps(json.loads(approved.read_text())["modifications"])
    assert sum(both.values()) == sum(before.values()) + (not touched)


def test_without_controls(planner, patched, tiny_model, suite):
    arguments = ("evaluate", patched, "--baseline", tiny_model, "--suite", suite(10), "--controls", 0)
    found = planner(*arguments).out
    assert "controls on stories: temperature alone would gain nothing (+" in found
    assert "no random plans: no controls were asked for" in found
    assert "noise floor" not in found
