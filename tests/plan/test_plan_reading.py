"""Reading a plan: strict, every problem named with its field, and nothing lost on the way to the file and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import PlanInvalid, PlanRefused, PlanTooNew
from planner.plan import Plan, decide, read_plan, write_plan

Document = dict[str, Any]


def _document() -> Document:
    return {
        "schema": "planner/plan@1",
        "id": "p-1",
        "created": "2026-01-01T00:00:00Z",
        "goal": "clearer",
        "checkpoint": {"name": "tiny", "fingerprint": "blake3:" + "0" * 64},
        "analyst": {"kind": "human"},
        "modifications": [
            {
                "id": "m01",
                "target": {"tensors": ["a.weight"]},
                "operation": {"kind": "scale", "factor": 1.02},
                "reasoning": "because",
                "confidence": 0.8,
                "expected_impact": "less noise",
                "evidence": [{"tensor": "a.weight", "fact": "std", "value": 0.031}],
            },
            {
                "id": "m02",
                "target": {"roles": ["q_proj"], "layers": "0-3"},
                "operation": {"kind": "clamp", "maximum": 1},
                "reasoning": "because",
                "confidence": 0,
                "expected_impact": "less noise",
            },
        ],
        "review": {"m01": {"decision": "approved", "reviewer": "me", "at": "2026-01-01T00:00:00Z", "comment": ""}},
    }


def _refused(text: str) -> PlanInvalid:
    with pytest.raises(PlanRefused) as caught:
        read_plan(text)
    assert isinstance(caught.value, PlanInvalid)
    assert caught.value.exit_status == 3
    assert caught.value.hint
    return caught.value


def test_the_plan_of_the_contract_is_read() -> None:
    plan = read_plan(json.dumps(_document()))
    assert [modification.id for modification in plan.modifications] == ["m01", "m02"]
    assert plan.modifications[0].operation.kind == "scale"
    assert plan.modifications[1].target.layers == "0-3"
    assert plan.review["m01"].reviewer == "me"


def _set(*path: str | int, to: Any) -> Callable[[Document], None]:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = to

    return change


def _drop(*path: str | int) -> Callable[[Document], None]:
    def change(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        del document[path[-1]]

    return change


FIRST = ("modifications", 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set(*FIRST, "confidence", to=1.5), "m01: modifications[0].confidence: Input should be less than or equal"),
        (_set(*FIRST, "confidence", to=-0.1), "m01: modifications[0].confidence: Input should be greater than"),
        (_set(*FIRST, "confidence", to="0.5"), "m01: modifications[0].confidence: Input should be a valid number"),
        (_set(*FIRST, "confidence", to=None), "m01: modifications[0].confidence: Input should be a valid number"),
        (_set(*FIRST, "confidence", to=True), "m01: modifications[0].confidence: Input should be a valid number"),
        (_set(*FIRST, "operation", "factor", to="1.02"), "m01: modifications[0].operation.factor: Input should be"),
        (_set(*FIRST, "operation", "factor", to=[1]), "m01: modifications[0].operation.factor: Input should be"),
        (_drop(*FIRST, "operation", "factor"), "m01: modifications[0].operation.factor: Field required (add the field"),
        (
            _set(*FIRST, "operation", "kind", to="explode"),
            "modifications[0].operation: there is no operation 'explode'",
        ),
        (_set(*FIRST, "operation", "kind", to="explode"), "(operations: scale, shift, clamp, zero"),
        (_drop(*FIRST, "operation", "kind"), "modifications[0].operation: Unable to extract tag"),
        (_set(*FIRST, "operation", "bias", to=1), "modifications[0].operation.bias: Extra inputs are not permitted"),
        (_set(*FIRST, "operation", to={"kind": "clamp"}), "clamp needs a minimum, a maximum or both"),
        (_set(*FIRST, "operation", to={"kind": "clamp", "minimum": 2, "maximum": 1}), "the minimum 2.0 is above"),
        (_set(*FIRST, "surprise", to=1), "m01: modifications[0].surprise: Extra inputs are not permitted (remove the"),
        (_set("surprise", to=1), "surprise: Extra inputs are not permitted"),
        (_set(*FIRST, "id", to="m02"), "modifications: more than one modification is called m02"),
        (_set(*FIRST, "id", to="../x"), "modifications[0].id: String should match pattern"),
        (_set(*FIRST, "id", to="m" * 65), "modifications[0].id: String should match pattern"),
        (_set(*FIRST, "reasoning", to=""), "m01: modifications[0].reasoning: String should have at least 1"),
        (_set(*FIRST, "reasoning", to="x" * 2049), "modifications[0].reasoning: String should have at most 2048"),
        (_drop(*FIRST, "expected_impact"), "modifications[0].expected_impact: Field required"),
        (
            _set(*FIRST, "target", to={}),
            "modifications[0].target: a target names tensors, roles or layers",
        ),
        (_set(*FIRST, "target", to={"tensors": []}), "modifications[0].target: a target names"),
        (
            _set(*FIRST, "target", "elements", to={"kind": "rows"}),
            "modifications[0].target.elements.indices: Field required",
        ),
        (
            _set(*FIRST, "target", "elements", to={"kind": "heads", "heads": "0", "part": "gate"}),
            "modifications[0].target.elements.part: Input should be 'query'",
        ),
        (
            _set(*FIRST, "target", "elements", to={"kind": "heads", "heads": "0-x"}),
            "modifications[0].target.elements.heads: '0-x' is not",
        ),
        (
            _set(*FIRST, "target", "elements", to={"kind": "top", "share": 0.1}),
            "modifications[0].target.elements: the kind is one of all, rows, columns, heads, tokens",
        ),
        (
            _set(*FIRST, "target", "elements", to={"kind": "top", "share": 0.1}),
            "magnitude_quantile (above 0.9: farthest from zero) or signed_quantile",
        ),
        (_set(*FIRST, "target", "elements", to={"kind": ["all"]}), "modifications[0].target.elements: the kind is one"),
        (_set(*FIRST, "target", "elements", to={}), "modifications[0].target.elements: the kind is one of all"),
        (_set(*FIRST, "target", "elements", to="all"), "modifications[0].target.elements: "),
        (
            _set(*FIRST, "target", "elements", to={"kind": "tokens", "ids": ["7"]}),
            "modifications[0].target.elements.ids[0]: Input should be a valid integer",
        ),
        (
            _set(*FIRST, "target", "elements", to={"kind": "all", "indices": "0"}),
            "modifications[0].target.elements.indices: Extra inputs are not permitted",
        ),
        (_set(*FIRST, "target", "layers", to="3-1"), "modifications[0].target.layers: the range 3-1 runs"),
        (_set(*FIRST, "target", "layers", to=3), "modifications[0].target.layers: Input should be a valid string"),
        (
            _set(*FIRST, "target", "tensors", to=["a{1-x}"]),
            "modifications[0].target.tensors: '1-x' is not",
        ),
        (_set(*FIRST, "target", "tensors", to=["x" * 1025]), "modifications[0].target.tensors: a pattern"),
        (_set(*FIRST, "target", "tensors", to="a.weight"), "modifications[0].target.tensors: Input should be a valid"),
        (
            _set(*FIRST, "evidence", 0, "value", to="0.03"),
            "modifications[0].evidence[0].value: Input should be a valid",
        ),
        (_set("review", "m09", to=_document()["review"]["m01"]), "`review` speaks of m09, which the plan does not"),
        (
            _set("review", "m01", "decision", to="maybe"),
            "review.m01.decision: Input should be 'approved' or 'rejected'",
        ),
        (_set("checkpoint", "fingerprint", to="sha256:00"), "checkpoint.fingerprint: String should match pattern"),
        (_set("modifications", to={}), "modifications: Input should be a valid"),
        (_set("modifications", 0, to=7), "modifications[0]: Input should be"),
        (_drop("goal"), "goal: Field required"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_name_of_the_field(change: Callable[[Document], None], said: str) -> None:
    document = _document()
    change(document)
    error = _refused(json.dumps(document))
    assert any(said in problem for problem in error.problems), error.problems


def test_every_problem_is_told_at_once() -> None:
    document = _document()
    document["modifications"][0]["confidence"] = 7
    document["modifications"][1]["confidence"] = -7
    document["extra"] = 1
    error = _refused(json.dumps(document))
    assert len(error.problems) == 3
    assert "3 problems" in error.message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1.02", "NaN", "NaN is not JSON"),
        ("1.02", "Infinity", "Infinity is not JSON"),
        ("1.02", "-Infinity", "-Infinity is not JSON"),
        ("1.02", "1e400", "too large for a 64-bit float"),
        ("1.02", "1" * 30, "an integer of 30 digits"),
        ('"goal": "clearer"', '"goal": "clearer", "goal": "other"', "the key 'goal' stands twice"),
        ('"factor": 1.02', '"factor": 1.02, "factor": 9', "the key 'factor' stands twice"),
        ("clearer", "\\ud800", "half of a surrogate pair"),
        ("clearer", "x" * (16 * 2**20), "characters; at most 16,777,216 are read"),
        ('"clearer"', "[" * 100_000, "nested too deep"),
        ('"goal"', "goal", "line 1, column"),
    ],
)
def test_json_that_two_readers_could_read_differently_is_refused(old: str, new: str, said: str) -> None:
    text = json.dumps(_document())
    assert old in text
    error = _refused(text.replace(old, new, 1))
    assert "not sound JSON" in error.message
    assert said in error.message


@pytest.mark.parametrize("text", ["", "[]", "null", '"planner/plan@1"', "{", "not json", "```json\n{}\n```"])
def test_text_that_is_no_json_object_is_refused(text: str) -> None:
    _refused(text)


@pytest.mark.parametrize("schema", ["planner/plan@2", "planner/plan@10"])
def test_a_plan_of_a_later_version_says_so(schema: str) -> None:
    error = _refused(json.dumps({**_document(), "schema": schema, "new field": 1}))
    assert isinstance(error, PlanTooNew)
    assert schema in error.message
    assert error.hint == "use a newer planner"


@pytest.mark.parametrize(
    "schema", ["planner/plan@0", "planner/plan@01", "planner/profile@1", "planner/plan@" + "9" * 5000, 1, None, ""]
)
def test_something_else_than_a_plan_says_what_it_is(schema: Any) -> None:
    error = _refused(json.dumps({**_document(), "schema": schema}))
    assert type(error) is PlanInvalid
    assert "`schema` is" in error.message


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_INTEGER = st.integers(0, 2**31 - 1)
_NUMBER = st.floats(allow_nan=False, allow_infinity=False)
_OPERATION = st.one_of(
    st.builds(lambda x: {"kind": "scale", "factor": x}, _NUMBER),
    st.builds(lambda x: {"kind": "shift", "offset": x}, _NUMBER),
    st.builds(lambda x: {"kind": "clamp", "minimum": None, "maximum": x}, _NUMBER),
    st.just({"kind": "zero"}),
)
_SHARE = st.floats(0.001, 0.999)
_ELEMENTS = st.one_of(
    st.just({"kind": "all"}),
    st.builds(lambda x: {"kind": "rows", "indices": x}, st.sampled_from(["0", "0-3,7", "5-99999"])),
    st.builds(lambda x: {"kind": "columns", "indices": x}, st.sampled_from(["0", "0-3,7"])),
    st.builds(lambda x: {"kind": "heads", "heads": "0,3", "part": x}, st.sampled_from([None, "query", "output"])),
    st.builds(lambda x, y: {"kind": "tokens", "texts": x, "ids": y}, st.lists(_TEXT, min_size=1), st.lists(_INTEGER)),
    st.builds(lambda x: {"kind": "magnitude_quantile", "above": x}, _SHARE),
    st.builds(lambda x: {"kind": "signed_quantile", "below": x}, _SHARE),
    st.builds(lambda x: {"kind": "value_range", "minimum": x}, _NUMBER),
)
_TARGET = st.one_of(
    st.builds(lambda x: {"tensors": x}, st.lists(_TEXT.filter(lambda x: not {"{", "}"} & set(x)), min_size=1)),
    st.builds(lambda x, y: {"roles": x, "layers": f"{y}-{y + 3}"}, st.lists(_TEXT, min_size=1), st.integers(0, 99)),
    st.builds(lambda x: {"layers": "1", "elements": x}, _ELEMENTS),
)
_MODIFICATION = st.fixed_dictionaries(
    {
        "target": _TARGET,
        "operation": _OPERATION,
        "reasoning": _TEXT,
        "confidence": st.floats(0, 1),
        "expected_impact": _TEXT,
        "evidence": st.lists(
            st.fixed_dictionaries({"tensor": _TEXT, "fact": _TEXT, "value": st.none() | _NUMBER}), max_size=2
        ),
    }
)


@given(st.lists(_MODIFICATION, max_size=3), _TEXT, st.lists(st.sampled_from(["approved", "rejected"]), max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_plan_that_is_written_is_read_back_the_same(
    modifications: list[Document], goal: str, decisions: list[Any]
) -> None:
    numbered = [{"id": f"m{number}", **modification} for number, modification in enumerate(modifications)]
    plan = Plan.model_validate({**_document(), "goal": goal, "modifications": numbered, "review": {}})
    for modification, decision in zip(plan.modifications, decisions, strict=False):
        plan = decide(plan, [modification.id], decision, reviewer=goal[:200])
    content = write_plan(plan)
    assert content.endswith(b"}\n")
    assert read_plan(content.decode()) == plan
    assert write_plan(read_plan(content.decode())) == content
