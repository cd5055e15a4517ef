"""`planner propose --evidence`: from a probe to a plan that is checked, applied and evaluated; and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "analysts"))

from studies import TINY, documents, measure, suite_in

from planner.inference import loading


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a few lines of inventory."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loading, "cores", lambda: 1)
    goal, neutral = documents("inventory.calibration", 0, 12), documents("stories.calibration", 0, 6)
    path = measure(tmp_path_factory.mktemp("evidence"), TINY, goal, neutral)
    patch.undo()
    return path


@pytest.fixture
def folder(evidence, tmp_path):
    """A folder with the evidence in it, as a person would have it, and no more."""
    place = tmp_path / "work"
    place.mkdir()
    for file in ("evidence.json", "evidence.safetensors", "goal.json"):
        (place / file).write_bytes((evidence.parent / file).read_bytes())
    return place


def test_from_evidence_to_a_better_model(planner, folder, tmp_path, tiny_model):
    suite_in(folder, documents("inventory.search", 0, 24))
    plan = folder / "plan.json"
    asked = ("--goal", "know the lists", "--evidence", folder / "evidence.json", "--out", plan)
    result = planner("propose", tiny_model, *asked, "--tune", folder / "suite.toml", "--budget", 2, "--most", 68)
    assert result.status == 0, result.err
    assert "plan.factors.safetensors" in result.err
    assert "evaluations of suite were spent" in result.out
    assert "planner check" in result.err
    checked = planner("check", plan, "--model", tiny_model, "--json")
    assert checked.status == 0
    assert checked.json["accepted"]
    assert checked.json["prediction"]["calibrated"]["difference"] < 0
    assert checked.json["warnings"] == []
    assert planner("review", plan, "--model", tiny_model, "--approve", "all", "--reviewer", "ann").status == 0
    out = tmp_path / "better"
    assert planner("apply", plan, "--model", tiny_model, "--out", out).status == 0
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    suite_in(held_out, documents("inventory.heldout", 0, 60))
    found = planner(
        *("evaluate", out, "--baseline", tiny_model, "--suite", held_out / "suite.toml", "--controls", 0, "--json")
    ).json
    metric = found["metrics"][0]
    assert metric["calibrated"]["verdict"] == "improved"
    assert metric["calibrated"]["p_value"] < 1e-3


def test_one_step_writes_two_files_and_one_json_document(planner, folder, everything):
    before = set(everything(folder))
    asked = ("--goal", "lists", "--evidence", folder / "evidence.json", "--out", folder / "p.json", "--json")
    result = planner("propose", TINY, *asked, "--most", 3)
    assert result.status == 0
    assert len(result.json["modifications"]) == 3
    assert result.json["evidence"]["file"] == "evidence.json"
    assert set(everything(folder)) - before == {"p.json", "p.factors.safetensors"}
    digest = result.json["modifications"][0]["operation"]["factor"]["digest"]
    assert json.loads((folder / "p.json").read_text())["modifications"][2]["operation"]["factor"]["digest"] == digest


@pytest.mark.parametrize(
    "where", ["planner.analysts.measured.MeasuredAnalyst.propose", "planner.analysts.choice.write_plan"]
)
def test_ctrl_c_leaves_nothing(planner, folder, everything, monkeypatch, where):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    before = everything(folder)
    monkeypatch.setattr(where, interrupted)
    result = planner("propose", TINY, "--goal", "x", "--evidence", folder / "evidence.json", "--out", folder / "p.json")
    assert result.status == 130
    assert everything(folder) == before


def test_a_plan_that_its_own_check_refuses_is_not_written(planner, folder, everything, tmp_path):
    (tmp_path / "policy.toml").write_text('refuse = ["effective", "unknown", "rescales_logits"]\n')
    before = everything(folder)
    result = planner(
        *("propose", TINY, "--goal", "x", "--evidence", folder / "evidence.json", "--out", folder / "p.json"),
        *("--policy", tmp_path / "policy.toml"),
    )
    assert result.status == 6
    assert "is refused" in result.err
    assert everything(folder) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tune", "suite.toml"), "--tune needs --evidence"),
        (("--drift-weight", 1), "--drift-weight needs --evidence"),
        (("--evidence", "e.json", "--llm", "a/b"), "is for the rules"),
        (("--evidence", "nowhere.json"), "nowhere.json"),
        (("--evidence", "e.json", "--tune", "s.toml", "--budget", 0), "budget"),
    ],
)
def test_what_does_not_go_together_is_said(planner, tmp_path, options, said):
    result = planner("propose", TINY, "--goal", "x", "--out", tmp_path / "p.json", *options)
    assert result.status == 2
    assert said in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "p.json").exists()


def test_factors_that_are_there_already_are_not_overwritten(planner, folder):
    (folder / "p.factors.safetensors").write_bytes(b"mine")
    result = planner("propose", TINY, "--goal", "x", "--evidence", folder / "evidence.json", "--out", folder / "p.json")
    assert result.status == 2
    assert (folder / "p.factors.safetensors").read_bytes() == b"mine"


def test_evidence_of_another_checkpoint_says_what_to_do(planner, folder, tiny_model):
    config = json.loads((tiny_model / "config.json").read_text())
    (tiny_model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    result = planner(
        *("propose", tiny_model, "--goal", "x", "--evidence", folder / "evidence.json", "--out", folder / "p.json")
    )
    assert result.status == 2
    assert "measure anew: planner probe" in result.err
