"""Review: decisions by name, bound to the text that was read."""

from __future__ import annotations

from typing import Any

import pytest

from planner.errors import PlanNotApproved, UsageError
from planner.plan import Plan, approved, decide, modification_digest, read_plan, undecided, write_plan


@pytest.fixture
def plan() -> Plan:
    return Plan.model_validate(
        {
            "schema": "planner/plan@1",
            "id": "p",
            "created": "2026-01-01T00:00:00Z",
            "goal": "clearer",
            "checkpoint": {"name": "tiny", "fingerprint": "blake3:" + "0" * 64},
            "analyst": {"kind": "human"},
            "modifications": [
                {
                    "id": name,
                    "target": {"layers": "0"},
                    "operation": {"kind": "scale", "factor": 2},
                    "reasoning": "because",
                    "confidence": 0.5,
                    "expected_impact": "something",
                }
                for name in ("a", "b", "c")
            ],
        }
    )


def _edited(plan: Plan, name: str, **fields: Any) -> Plan:
    return plan.model_copy(
        update={"modifications": tuple(m.model_copy(update=fields) if m.id == name else m for m in plan.modifications)}
    )


def test_decisions_are_recorded_with_who_when_why_and_on_what(plan: Plan) -> None:
    decided = decide(plan, ["c", "a"], "approved", reviewer="Ada", comment="looks right")
    assert plan.review == {}  # the plan that was given stays as it was
    assert list(decided.review) == ["a", "c"]
    decision = decided.review["a"]
    assert (decision.decision, decision.reviewer, decision.comment) == ("approved", "Ada", "looks right")
    assert decision.at.endswith("Z")
    assert decision.digest == modification_digest(plan.modifications[0])
    assert [modification.id for modification in undecided(decided)] == ["b"]


def test_a_later_decision_takes_the_place_of_an_earlier_one(plan: Plan) -> None:
    decided = decide(decide(plan, ["a", "b", "c"], "approved", reviewer="Ada"), ["b"], "rejected", reviewer="Bob")
    assert [modification.id for modification in approved(decided)] == ["a", "c"]
    assert decided.review["b"].reviewer == "Bob"


def test_an_id_that_is_not_in_the_plan_is_wrong_usage(plan: Plan) -> None:
    with pytest.raises(UsageError, match="no modification 'd'") as caught:
        decide(plan, ["a", "d"], "approved", reviewer="Ada")
    assert caught.value.hint == "it holds a, b, c"
    with pytest.raises(UsageError) as caught:
        decide(plan.model_copy(update={"modifications": ()}), ["a"], "approved", reviewer="Ada")
    assert caught.value.hint == "it holds none at all"


@pytest.mark.parametrize(
    ("said", "fields"), [("reviewer", {"reviewer": ""}), ("comment", {"reviewer": "Ada", "comment": "x" * 3000})]
)
def test_a_decision_that_cannot_be_kept_is_wrong_usage(plan: Plan, said: str, fields: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=f"decision on a cannot be kept: {said}"):
        decide(plan, ["a"], "approved", **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": "other"},
        {"confidence": 0.6},
        {"expected_impact": "other"},
        {"operation": {"kind": "scale", "factor": 2.0000001}},
        {"target": {"layers": "0-1"}},
        {"evidence": [{"tensor": "x", "fact": "std", "value": 1}]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_an_edit_of_anything_that_was_read_takes_the_approval_away(plan: Plan, fields: dict[str, Any]) -> None:
    decided = decide(plan, ["a", "b", "c"], "approved", reviewer="Ada")
    document = decided.model_dump(mode="json")
    document["modifications"][1] |= fields
    edited = Plan.model_validate(document)
    with pytest.raises(PlanNotApproved, match=r"edited after the review: b$"):
        approved(edited)
    assert [modification.id for modification in undecided(edited)] == ["a", "b", "c"], "a plan acts as a whole"
    half = decide(edited, ["b"], "approved", reviewer="Ada")
    with pytest.raises(PlanNotApproved, match=r"the plan was edited after the review of a, c$"):
        approved(half)
    again = decide(half, ["a", "c"], "approved", reviewer="Ada")
    assert [modification.id for modification in approved(again)] == ["a", "b", "c"]


def test_the_approval_survives_the_file(plan: Plan) -> None:
    decided = decide(plan, ["a", "b", "c"], "approved", reviewer="Ada")
    assert len(approved(read_plan(write_plan(decided).decode()))) == 3


def test_a_decision_written_by_hand_approves_nothing(plan: Plan) -> None:
    document = plan.model_dump(mode="json")
    document["review"] = {
        name: {"decision": "approved", "reviewer": "Ada", "at": "2026-01-01T00:00:00Z"} for name in ("a", "b", "c")
    }
    written = Plan.model_validate(document)
    with pytest.raises(PlanNotApproved, match="the decision on a, b, c has no seal") as caught:
        approved(written)
    assert "planner review" in caught.value.hint
    assert len(undecided(written)) == 3
    assert len(approved(decide(written, ["a", "b", "c"], "approved", reviewer="Ada"))) == 3


def test_without_decisions_or_with_rejections_only_nothing_is_approved(plan: Plan) -> None:
    with pytest.raises(PlanNotApproved, match="not reviewed: a, b, c"):
        approved(plan)
    with pytest.raises(PlanNotApproved, match="no modification of the plan is approved") as caught:
        approved(decide(plan, ["a", "b", "c"], "rejected", reviewer="Ada"))
    assert caught.value.exit_status == 3
    assert undecided(decide(plan, ["a", "b", "c"], "rejected", reviewer="Ada")) == ()


def test_a_rejected_modification_that_was_edited_must_be_read_again(plan: Plan) -> None:
    decided = decide(decide(plan, ["a", "b"], "approved", reviewer="Ada"), ["c"], "rejected", reviewer="Ada")
    with pytest.raises(PlanNotApproved, match="edited after the review: c"):
        approved(_edited(decided, "c", reasoning="better now"))
