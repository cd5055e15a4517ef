"""What the history tells at the command line: `log`, `log --patch`, `verify`, and what `evaluate` adds to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner import fsio
from planner.evaluation import Evaluation
from planner.plan import Plan
from planner.transaction import Receipt


@pytest.fixture
def patched(planner: Callable[..., Any], proposed: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """The checkpoint that the plan makes: m01 and m02 approved by ann, the rest rejected."""
    names = [modification["id"] for modification in json.loads(proposed.read_text())["modifications"]]
    arguments = ("review", proposed, "--model", tiny_model, "--reviewer", "ann")
    assert planner(*arguments, "--approve", *names[:2]).status == 0
    assert planner(*arguments, "--reject", *names[2:], "--why", "no need").status == 0
    out = tmp_path / "patched"
    assert planner("apply", proposed, "--model", tiny_model, "--out", out).status == 0
    return out


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen of 80 columns."""
    monkeypatch.setattr("planner.cli.console._PIPED_WIDTH", 80)
    monkeypatch.setattr("planner.cli.given.invoking_user", lambda: "root")


def _evaluate(planner: Callable[..., Any], patched: Path, tiny_model: Path, suite: Path, *more: object) -> Any:
    arguments = ("--baseline", tiny_model, "--suite", suite, "--controls", 0)
    return planner("evaluate", patched, *arguments, *more)


def test_an_evaluation_goes_into_the_history(planner, patched, tiny_model, suite, everything):
    before = everything(patched)
    unrecorded = _evaluate(planner, patched, tiny_model, suite(10), "--no-record")
    assert unrecorded.status == 0
    assert everything(patched) == before

    found = _evaluate(planner, patched, tiny_model, suite(10), "--json")
    assert f"recorded in the history of {patched}" in found.err
    after = everything(patched)
    assert {name for name in after if after[name] != before.get(name)} == {
        ".planner/ledger.json",
        ".planner/patches/0001/evaluation-1.json",
    }
    assert (
        Evaluation.model_validate_json(after[".planner/patches/0001/evaluation-1.json"]).model_dump(mode="json")
        == found.json
    )
    refused = _evaluate(planner, patched, tiny_model, suite(0))
    assert refused.status == 5

    events = planner("log", patched, "--json").json["events"]
    assert [event["kind"] for event in events] == ["applied", "evaluated", "evaluated"]
    assert [event["evaluation"] and event["evaluation"]["accepted"] for event in events] == [None, True, False]
    shown = planner("log", patched).out
    applied = next(line for line in shown.splitlines() if "applied 1" in line)
    assert "tidy up" in applied
    assert "refused: stories no detectable change" in applied, "the last verdict"
    assert re.search(r"evaluated 1 +accepted: stories no detectable change", shown)
    assert planner("verify", patched).status == 0
    assert planner("revert", patched).status == 0
    assert "reverted to 0" in planner("log", patched).out


def test_where_the_candidate_has_no_history_or_is_locked_the_evaluation_is_given_all_the_same(
    planner, patched, tiny_model, suite, everything
):
    before = everything(tiny_model)
    found = _evaluate(planner, tiny_model, tiny_model, suite(10))
    assert found.status == 0
    assert "recorded" not in found.err
    assert everything(tiny_model) == before

    before = everything(patched)
    with fsio.lock(patched.with_name(f".{patched.name}.planner-lock")):
        found = _evaluate(planner, patched, tiny_model, suite(10), "--json")
    assert found.status == 0
    assert found.json["metrics"]
    (said,) = [line for line in found.err.splitlines() if "recorded" in line]
    assert said.startswith(f"not recorded in the history of {patched}: process ")
    assert everything(patched) == before


def test_one_line_an_event_in_eighty_columns(planner, patched, tiny_model, suite, narrow):
    _evaluate(planner, patched, tiny_model, suite(10))
    planner("revert", patched)
    found = planner("log", patched)
    assert all(len(line) <= 80 for line in found.out.splitlines() if not line.startswith("made from"))
    rows = [line.split() for line in found.out.splitlines() if re.match(r" ?\d{4}-", line)]
    assert len(rows) == 3, "no row takes two lines"
    assert rows[0][3:8] == ["applied", "1", "tidy", "up", "accepted"]
    receipt = Receipt.model_validate_json((patched / ".planner" / "patches" / "0001" / "receipt.json").read_text())
    largest = max(tensor.cumulative_change for tensor in receipt.tensors)
    assert rows[0][-1] == f"{largest:.3g}"
    assert rows[1][3:6] == ["evaluated", "1", "accepted"]
    assert rows[2][3:6] == ["reverted", "to", "0"]
    assert "left out, because the terminal is narrow: plan, elements, digest" in found.err


def test_one_patch_whole(planner, patched, proposed, tiny_model, suite):
    _evaluate(planner, patched, tiny_model, suite(10))
    plan = Plan.model_validate_json(proposed.read_text())
    document = planner("log", patched, "--patch", 1, "--json").json
    assert Plan.model_validate(document["plan"]).id == plan.id
    receipt = Receipt.model_validate(document["receipt"])
    assert document["in_force"] is True
    assert [event["kind"] for event in document["events"]] == ["applied", "evaluated"]

    shown = " ".join(planner("log", patched, "--patch", 1).out.split())
    for modification in plan.modifications[:2]:
        assert " ".join(modification.reasoning.split()) in shown
        assert " ".join(modification.expected_impact.split()) in shown
    assert all(f"{rejected} rejected: no need" in shown for rejected in receipt.rejected)
    for tensor in receipt.tensors:
        assert f"{tensor.name} {','.join(tensor.modifications)} {tensor.changed_elements:,} of" in shown
    assert receipt.fingerprint_after in shown
    assert "ann" in shown
    assert f"undo data: {receipt.undo_bytes:,} bytes, {receipt.undo_bytes / receipt.changed_bytes:.2%} of" in shown
    assert "on suite suite-10 against blake3:" in shown
    assert "stories: 12 documents" in shown
    assert "in full: evaluation-1.json" in shown
    planner("revert", patched)
    assert "patch 1, taken back:" in planner("log", patched, "--patch", 1).out


@pytest.mark.parametrize("number", [0, 2, -1])
def test_a_patch_that_is_not_there(planner, patched, tiny_model, number):
    found = planner("log", patched, "--patch", number)
    assert found.status == 2
    assert f"holds no patch {number}" in found.err
    assert planner("log", tiny_model, "--patch", 1).status == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [("plan.json", None), ("plan.json", "\xff"), ("receipt.json", "{")],
    ids=["gone", "bytes", "cut"],
)
def test_a_record_that_cannot_be_read_is_an_error_with_a_way_on(planner, patched, name, content):
    path = patched / ".planner" / "patches" / "0001" / name
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="latin-1")
    found = planner("log", patched, "--patch", 1)
    assert found.status == 7
    assert "error[ledger-damaged]" in found.err
    assert "planner verify" in found.err
    verified = planner("verify", patched)
    assert verified.status == 7
    assert f"damaged or missing record: .planner/patches/0001/{name}" in verified.out


def test_verify_names_the_damaged_tensor_first(planner, patched):
    shard = patched / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (patched / "README.md").write_text("mine")
    (patched / ".planner" / "patches" / "0001" / "plan.json").unlink()
    found = planner("verify", patched)
    said = [line.partition(":")[0] for line in found.out.splitlines()]
    assert found.status == 7
    assert said[1:-1] == ["damaged tensor", *["damaged or missing file"] * 2, "damaged or missing record"]
    assert f"damaged or missing file: {shard.name}" in found.out
    assert "damaged or missing file: README.md" in found.out
    document = planner("verify", patched, "--json").json
    assert document["damaged_records"] == [".planner/patches/0001/plan.json"]
    assert document["sound"] is False


def test_a_hostile_history_stays_on_its_lines(planner, patched):
    path = patched / ".planner" / "ledger.json"
    ledger = json.loads(path.read_text())
    ledger["events"][0] |= {"goal": "\x1b[2J\ngoal\u202e", "by": "\x1b]0;x\x07", "plan": "a\r\nb"}
    path.write_text(json.dumps(ledger))
    found = planner("log", patched)
    assert found.status == 0
    assert not set(found.out) & set("\x1b\r\x07\u202e")
    assert len([line for line in found.out.splitlines() if "goal" in line]) == 2


def test_a_pipeline_records_what_it_found(planner, tiny_model, suite, tmp_path):
    pipeline = tmp_path / "tidy.toml"
    name = suite(10).name
    pipeline.write_text(f'model = "{tiny_model.name}"\ngoal = "tidy up"\nsuite = "{name}"\ncontrols = 0\n')
    assert planner("run", pipeline, "--run-dir", tmp_path / "run").status == 0
    events = planner("log", tmp_path / "run" / "candidate", "--json").json["events"]
    assert [(event["kind"], event["by"]) for event in events][1:] == [("evaluated", "pipeline")]
    assert events[1]["evaluation"]["accepted"] is True
