"""Review in a terminal and by flags: what is asked, what is shown, what is kept."""

from __future__ import annotations

import io
import json
import sys

import pytest


class Terminal(io.StringIO):
    """Somebody who types these lines."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def types(monkeypatch):
    def typing(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))

    return typing


def decisions(plan):
    review = json.loads(plan.read_text())["review"]
    return {name: (found["decision"], found["reviewer"], found["comment"]) for name, found in review.items()}


def test_each_modification_is_asked_about_with_its_reasons_and_measurements(planner, proposed, tiny_model, types):
    types("a", "looks right", "r", "", "s")
    result = planner("review", proposed, "--model", tiny_model, "--reviewer", "ann")
    assert result.status == 0
    assert result.err.count("approve, reject, skip or quit?") == 3
    for shown in (
        "says the analyst (confidence 0.25)",
        "expects: ",
        "cites: outliers.6 = ",
        "measured: model.layers.5",
    ):
        assert shown in result.out
    assert decisions(proposed) == {"m01": ("approved", "ann", "looks right"), "m02": ("rejected", "ann", "")}
    assert "m03  undecided" in result.out


def test_what_is_decided_is_not_asked_again(planner, proposed, tiny_model, types):
    types("a", "", "q")
    assert planner("review", proposed, "--model", tiny_model).status == 0
    types("r", "no", "r", "no")
    second = planner("review", proposed, "--model", tiny_model)
    assert second.err.count("approve, reject, skip or quit?") == 2
    assert [found[0] for found in decisions(proposed).values()] == ["approved", "rejected", "rejected"]
    assert "next: planner apply" in second.err


def test_an_answer_that_is_none_is_asked_for_again(planner, proposed, tiny_model, types):
    types("yes", "", "A", "q")
    result = planner("review", proposed, "--model", tiny_model)
    assert result.status == 0
    assert decisions(proposed) == {}


def test_a_problem_is_shown_with_the_question(planner, edited, tiny_model, types):
    plan = edited("modifications", 1, "operation", "factor", 50.0)
    types("q")
    shown = planner("review", plan, "--model", tiny_model).out
    assert "problem:" not in shown, "the first modification has none"
    types("s", "q")
    assert "problem: m02: " in planner("review", plan, "--model", tiny_model).out


def test_decisions_go_to_another_file_when_asked(planner, proposed, tiny_model, tmp_path):
    before = proposed.read_bytes()
    out = tmp_path / "reviewed.json"
    assert planner("review", proposed, "--model", tiny_model, "--approve", "m01,m03", "--out", out).status == 0
    assert proposed.read_bytes() == before
    assert list(decisions(out)) == ["m01", "m03"]


def test_without_a_reviewer_it_is_the_invoking_user(planner, proposed, tiny_model, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "karl")
    assert planner("review", proposed, "--model", tiny_model, "--approve", "m01", "--why", "fine").status == 0
    assert decisions(proposed) == {"m01": ("approved", "karl", "fine")}

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert planner("review", proposed, "--model", tiny_model, "--reject", "m01").status == 0
    assert decisions(proposed) == {"m01": ("rejected", "unknown", "")}


def test_apply_yes_is_recorded_as_the_users_own_decision(planner, proposed, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "karl")
    out = tmp_path / "out"
    assert planner("review", proposed, "--model", tiny_model, "--reject", "m02", "--reviewer", "ann").status == 0
    receipt = planner("apply", proposed, "--model", tiny_model, "--out", out, "--yes", "--json").json
    assert receipt["modifications"] == ["m01", "m03"]
    assert receipt["rejected"] == ["m02"]
    assert receipt["by"] == "karl"
    kept = decisions(out / ".planner" / "patches" / "0001" / "plan.json")
    assert kept == {
        name: (what, who, how)
        for name, what, who, how in [
            ("m01", "approved", "karl", "apply --yes"),
            ("m02", "rejected", "ann", ""),
            ("m03", "approved", "karl", "apply --yes"),
        ]
    }


def test_all_overturns_approvals_and_no_rejection(planner, proposed, tiny_model):
    def review(*given):
        result = planner("review", proposed, "--model", tiny_model, *given)
        assert result.status == 0, result.err
        return result

    review("--reject", "m02", "--why", "too bold")
    assert "left rejected: m02; to approve them, name them" in review("--approve", "all", "--reviewer", "ann").err
    found = decisions(proposed)
    assert found["m02"][0::2] == ("rejected", "too bold")
    assert {name for name, decision in found.items() if decision[:2] == ("approved", "ann")} == {"m01", "m03"}
    assert "m02 (rejected by " in review("--approve", "m02", "--reviewer", "ann").err
    assert decisions(proposed)["m02"][:2] == ("approved", "ann"), "by name it can be overturned"
    assert "left rejected" not in review("--approve", "all", "--reviewer", "ann").err
    told = review("--reject", "all", "--reviewer", "bob").err
    assert "decided otherwise before: m01 (approved by ann), m02 (approved by ann), m03 (approved by ann)" in told
    assert {decision[:2] for decision in decisions(proposed).values()} == {("rejected", "bob")}
    review("--reject", "all", "--approve", "m02,m03")
    assert [decision[0] for decision in decisions(proposed).values()] == ["rejected", "approved", "approved"]
    review("--approve", "m01", "--reject", "m02")
    assert [decision[0] for decision in decisions(proposed).values()] == ["approved", "rejected", "approved"]


def test_what_was_rejected_as_a_whole_after_an_approval_is_not_applied(planner, approved, tiny_model, tmp_path):
    assert planner("review", approved, "--model", tiny_model, "--reject", "all").status == 0
    result = planner("apply", approved, "--model", tiny_model, "--out", tmp_path / "out")
    assert result.status == 3
    assert "no modification of the plan is approved" in result.err
    assert not (tmp_path / "out").exists()


def test_a_question_mark_explains_the_keys(planner, proposed, tiny_model, types):
    types("?", "q")
    result = planner("review", proposed, "--model", tiny_model)
    assert result.status == 0
    assert "s: leave it undecided" in result.err
    assert decisions(proposed) == {}


def test_ctrl_c_in_the_middle_of_a_review_keeps_what_was_decided(planner, proposed, tiny_model, types):
    types("a", "fine")  # then the terminal is gone
    result = planner("review", proposed, "--model", tiny_model, "--reviewer", "ann")
    assert result.status == 130
    assert decisions(proposed) == {"m01": ("approved", "ann", "fine")}
