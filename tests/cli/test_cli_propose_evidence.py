"""`planner propose --evidence`: from a probe to a plan that is checked, applied and evaluated; and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "analysts"))

from chat_server import Answer, Calls, ChatServer
from studies import TINY, documents, measure, suite_in

from planner.analysts import read_transcript
from planner.evidence import read_evidence
from planner.inference import loading
from planner.plan import read_plan


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
    "where", ["planner.analysts.measured.MeasuredAnalyst.propose", "planner.analysts.proposing.write_plan"]
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
        (("--evidence", "e.json", "--llm", "a/b", "--tune", "s.toml"), "--tune is for the rules"),
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


def cited(folder: Path, *, times: float = 1.0) -> str:
    """A model's answer that cites what was measured, or `times` of it."""
    measured = read_evidence(folder / "evidence.json")
    best = max((one for one in measured.tensors if one.role == "down_proj"), key=lambda one: one.scale.gain)
    modification = {
        "id": "m01",
        "target": {"tensors": [best.name]},
        "operation": {"kind": "scale", "factor": 1.05 if best.scale.calibrated < 0 else 0.95},
        "reasoning": "it is the most sensitive one",
        "confidence": 0.6,
        "expected_impact": "a lower loss",
        "evidence": [{"tensor": best.name, "fact": "probe.scale.calibrated", "value": best.scale.calibrated * times}],
    }
    return json.dumps({"note": "from the sensitivities", "modifications": [modification]})


def test_a_language_model_argues_from_what_was_measured(planner, folder, tiny_model):
    looks = Calls([("sensitivities", {"by": "scale", "role": None, "most": 3}), ("check_plan", {"modifications": []})])
    with ChatServer([looks, Answer(cited(folder, times=1.5)), Answer(cited(folder))]) as server:
        asked = ["--goal", "know the lists", "--evidence", folder / "evidence.json", "--out", folder / "plan.json"]
        result = planner("propose", tiny_model, *asked, "--llm", "m", "--base-url", server.base_url)
    assert result.status == 0, result.err
    first, second, third = (request.body for request in server.requests)
    assert "probe.scale.calibrated" in first["messages"][1]["content"]
    assert {"sensitivities", "predicted_change"} <= {tool["function"]["name"] for tool in first["tools"]}
    assert "facts to cite: probe.scale.NAME" in second["messages"][-2]["content"]
    assert "it cites probe.scale.calibrated" in third["messages"][-1]["content"], "a number that was not measured"
    plan = read_plan((folder / "plan.json").read_text())
    assert plan.evidence is not None
    assert plan.evidence.file == "evidence.json"
    assert (plan.analyst.rounds, plan.analyst.first_answer_valid) == (2, False)
    assert read_transcript(folder / "plan.transcript.json").evidence == plan.evidence.id
    checked = planner("check", folder / "plan.json", "--model", tiny_model, "--json")
    assert checked.json["accepted"]
    assert checked.json["prediction"]["evidence"] == plan.evidence.id, "found beside the plan, by its name"


def test_confidence_is_held_against_what_came_of_it(planner, folder, tiny_model, tmp_path):
    plan = folder / "plan.json"
    suite_in(folder, documents("inventory.heldout", 0, 40))

    def ask(*more: object):
        with ChatServer([Answer(cited(folder))]) as server:
            asked = ["--goal", "know the lists", "--evidence", folder / "evidence.json", "--no-tools", "--llm", "m"]
            result = planner("propose", tiny_model, *asked, "--base-url", server.base_url, *more)
        assert result.status == 0, result.err
        return server.requests[0].body["messages"][1]["content"]

    assert "Your record" not in ask("--out", plan)
    assert planner("review", plan, "--model", tiny_model, "--approve", "all").status == 0
    out = tmp_path / "changed"
    assert planner("apply", plan, "--model", tiny_model, "--out", out).status == 0
    suite = ["--suite", folder / "suite.toml", "--controls", 0]
    assert planner("evaluate", out, "--baseline", tiny_model, *suite).status in (0, 5)
    later = ask("--out", folder / "later.json")
    assert "# Your record" in later
    assert "of 1 evaluated plan" in later
    assert "0.6" in later
    shown = planner("review", folder / "later.json", "--model", tiny_model, "--approve", "m01")
    assert "of 1 evaluated plan" in shown.out
