"""Lists of patches: every entry becomes a modification or a problem that names it; nothing is guessed or left out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import PlanInvalid
from planner.plan import ImportedList, Modification, new_plan, read_patch_list, read_plan, write_plan

NAMES = (
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(4)
        for part in ("self_attn.q_proj", "self_attn.k_norm", "mlp.up_proj", "input_layernorm")
    ),
    "lm_head.weight",
)
SOUND = {
    "tensor": NAMES[1],
    "operation": "scale",
    "value": 1.02,
    "target": "all",
    "confidence": 0.8,
    "reason": "sharp.",
}


def _read(*entries: dict[str, Any], **options: Any) -> ImportedList:
    return read_patch_list(json.dumps(entries), NAMES, **options)


def _one(**fields: Any) -> Modification:
    return _read(SOUND | fields).modifications[0]


def _problems(*entries: Any, **options: Any) -> tuple[str, ...]:
    with pytest.raises(PlanInvalid) as caught:
        read_patch_list(json.dumps(entries), NAMES, **options)
    assert caught.value.exit_status == 3
    return caught.value.problems


def test_an_entry_becomes_a_modification() -> None:
    found = _one()
    assert found.id == "m01"
    assert found.target.tensors == (NAMES[1],)
    assert found.target.elements.kind == "all"
    assert found.operation.model_dump() == {"kind": "scale", "factor": 1.02}
    assert found.confidence == 0.8
    assert found.reasoning == "sharp."
    assert "does not say" in found.expected_impact
    assert _read(SOUND).note == ""


@pytest.mark.parametrize(
    ("operation", "value", "expected"),
    [
        ("scale", 1, {"kind": "scale", "factor": 1.0}),
        ("add", -0.5, {"kind": "shift", "offset": -0.5}),
        ("clamp", [-1, 2.5], {"kind": "clamp", "minimum": -1.0, "maximum": 2.5}),
        ("clamp", [None, 2.5], {"kind": "clamp", "minimum": None, "maximum": 2.5}),
        ("clamp", {"min": -1, "max": 2}, {"kind": "clamp", "minimum": -1.0, "maximum": 2.0}),
        ("clamp", {"max": 2}, {"kind": "clamp", "minimum": None, "maximum": 2.0}),
        ("clamp_max", 20, {"kind": "clamp", "minimum": None, "maximum": 20.0}),
        ("clamp_min", 0, {"kind": "clamp", "minimum": 0.0, "maximum": None}),
        ("zero", None, {"kind": "zero"}),
        ("zero", 0, {"kind": "zero"}),
    ],
)
def test_every_operation_has_one_of_the_planners(operation: str, value: Any, expected: dict[str, Any]) -> None:
    assert _one(operation=operation, value=value).operation.model_dump() == expected


def test_the_other_names_of_fields_are_read() -> None:
    entry = {"tensor_name": NAMES[2], "operation": "zero", "reason_summary": "it is noise"}
    found = _read(entry).modifications[0]
    assert found.target.tensors == (NAMES[2],)
    assert found.reasoning == "it is noise. No confidence was published; the 0 stands for that."
    assert _read(entry | {"tensor": NAMES[2]}).modifications == (found,)
    assert "tensor and tensor_name say different things" in _problems(entry | {"tensor": NAMES[3]})[0]


def test_what_was_not_published_is_said_and_not_made_up() -> None:
    found = _read(SOUND, SOUND | {"confidence": None, "reason": None})
    assert found.modifications[1].confidence == 0
    assert found.modifications[1].reasoning == (
        "No reason was published. No confidence was published; the 0 stands for that."
    )
    assert found.note == (
        "1 of 2 entries come without a confidence; theirs is recorded as 0. 1 of 2 come without a reason."
    )


@pytest.mark.parametrize(
    ("target", "top", "expected"),
    [
        ("top 10%", "magnitude", {"kind": "magnitude_quantile", "above": 0.9, "below": None}),
        ("top 10%", "signed", {"kind": "signed_quantile", "above": 0.9, "below": None}),
        ("Top 12.5 %", "signed", {"kind": "signed_quantile", "above": 0.875, "below": None}),
        ("bottom 10%", "signed", {"kind": "signed_quantile", "above": None, "below": 0.1}),
        ("bottom 10%", "magnitude", {"kind": "magnitude_quantile", "above": None, "below": 0.1}),
        ("top 0.1%", "magnitude", {"kind": "magnitude_quantile", "above": 0.999, "below": None}),
    ],
)
def test_a_share_means_what_the_caller_says(target: str, top: Any, expected: dict[str, Any]) -> None:
    found = _read(SOUND | {"target": target}, top=top).modifications[0].target.elements.model_dump()
    assert {"above": None, "below": None} | found == expected


def test_the_quantile_takes_the_share_that_was_asked_for() -> None:
    """On a thousand values, ten percent are a hundred, whichever of the two is meant."""
    values = np.random.default_rng(0).normal(size=1000)
    for top, ranked in (("magnitude", abs(values)), ("signed", values)):
        share = _read(SOUND | {"target": "top 10%"}, top=top).modifications[0].target.elements
        least = np.quantile(ranked, share.above, method="higher")  # type: ignore[union-attr]
        assert np.count_nonzero(ranked >= least) == 100


def test_a_share_without_saying_of_what_is_a_problem_that_explains_both_meanings() -> None:
    (problem,) = _problems(SOUND | {"target": "top 10%"})
    for said in ("entry 1", "two meanings", "magnitude", "signed", "--top"):
        assert said in problem


def test_every_problem_of_every_entry_is_told_at_once_with_its_number() -> None:
    problems = _problems(
        SOUND,
        SOUND | {"tensor": "model.layers.1.self_attn.qproj.weight", "value": "2%", "confidence": 2.5},
        SOUND | {"operation": "explode"},
        17,
    )
    assert [problem.partition(" (")[0].partition(":")[0] for problem in problems] == [
        *["entry 2"] * 3,
        "entry 3",
        "entry 4",
    ]
    assert "there is no tensor 'model.layers.1.self_attn.qproj.weight'" in problems[0]
    assert "nearest: model.layers.1.self_attn.q_proj.weight" in problems[0]
    assert "'2%' is not a number" in problems[1]
    assert "the confidence 2.5 is outside 0 to 1" in problems[2]
    assert "there is no operation 'explode'" in problems[3]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tensor": None}, "it names no tensor"),
        ({"tensor": 7}, "it names no tensor"),
        ({"tensor": "*"}, "there is no tensor '*'"),
        ({"tensor": "model.layers.{0-3}.mlp.up_proj.weight"}, "there is no tensor"),
        ({"operation": None}, "there is no operation None"),
        ({"operation": ["scale"]}, "there is no operation ['scale']"),
        ({"operation": "normalize"}, "normalize means one thing in one such tool and another in the next"),
        ({"value": None}, "the value None is not a number"),
        ({"value": True}, "the value True is not a number"),
        ({"value": [1, 2]}, "the value [1, 2] is not a number"),
        ({"operation": "clamp", "value": 3}, "the bounds 3 cannot be read"),
        ({"operation": "clamp", "value": [1, 2, 3]}, "cannot be read"),
        ({"operation": "clamp", "value": ["a", 2]}, "the value 'a' is not a number"),
        ({"operation": "clamp", "value": {"minimum": 1}}, "cannot be read"),
        ({"operation": "clamp", "value": {}}, "cannot be read"),
        ({"operation": "clamp", "value": [None, None]}, "clamp needs a minimum, a maximum or both"),
        ({"operation": "clamp", "value": [2, 1]}, "the minimum 2.0 is above the maximum 1.0"),
        ({"operation": "zero", "value": 0.5}, "zero takes no value"),
        ({"target": "extreme outliers"}, "the target 'extreme outliers' cannot be read"),
        ({"target": 10}, "the target 10 cannot be read"),
        ({"target": ["all"]}, "cannot be read"),
        ({"target": "top 0%"}, "none or all of the elements"),
        ({"target": "top 100%"}, "none or all of the elements"),
        ({"target": "top 10"}, "cannot be read"),
        ({"confidence": "high"}, "the value 'high' is not a number"),
        ({"confidence": -0.1}, "outside 0 to 1"),
        ({"reason": ["because"]}, "is not text"),
        ({"reason": "x" * 3000}, "reasoning: String should have at most 2048 characters"),
        ({"reason": "a", "reason_summary": "b"}, "say different things"),
    ],
)
def test_what_cannot_be_read_is_a_problem(fields: dict[str, Any], said: str) -> None:
    (problem,) = _problems(SOUND | fields)
    assert said in problem
    assert problem.startswith("entry 1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not sound JSON"),
        ("[", "not sound JSON"),
        ('[{"tensor": "a", "tensor": "b"}]', "the key 'tensor' stands twice"),
        ('[{"value": NaN}]', "NaN is not JSON"),
        ("{}", "not a JSON array"),
        ("[]", "not a JSON array with entries"),
        ("[" + ",".join(["1"] * 10_001) + "]", "at most 10,000"),
    ],
)
def test_what_is_no_list_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanInvalid) as caught:
        read_patch_list(text, NAMES)
    assert said in caught.value.message


def test_fields_that_were_not_read_are_named_unless_they_are_known_to_mean_nothing() -> None:
    extra = {"analysis_effect": "real", "confidence_source": "blog", "blog_target": "outliers", "priority": 1}
    assert _read(SOUND | extra, SOUND | {"priority": 2}).note == (
        "Fields that were not read: priority (in 2), blog_target (in 1)."
    )
    hostile = _read(SOUND | {f"field {number}" + "x" * 500: 1 for number in range(500)})
    assert len(hostile.note) < 2048
    assert "and 488 more" in hostile.note


def test_several_patches_of_one_tensor_stay_in_their_order() -> None:
    found = _read(*(SOUND | {"value": factor} for factor in (3, 1, 2)))
    assert [m.operation.model_dump()["factor"] for m in found.modifications] == [3, 1, 2]
    assert [m.id for m in found.modifications] == ["m01", "m02", "m03"]
    assert _read(*[SOUND] * 120).modifications[99].id == "m100"


def test_the_plan_is_one_that_is_read_back() -> None:
    found = _read(SOUND, SOUND | {"target": "bottom 5%"}, top="signed")
    plan = new_plan(goal="clearer", name="tiny", fingerprint="blake3:" + "0" * 64, found=found)
    assert plan.analyst.kind == "imported"
    assert plan.review == {}
    assert read_plan(write_plan(plan).decode()) == plan


_VALUE = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)
_FIELD = st.sampled_from(["tensor", "tensor_name", "operation", "value", "target", "confidence", "reason", "more"])
_GIVEN = st.one_of(
    _VALUE, st.sampled_from([*NAMES[:2], "scale", "clamp", "zero", "all", "top 10%"]), st.lists(_VALUE, max_size=3)
)


@given(st.lists(st.dictionaries(_FIELD, _GIVEN) | _VALUE, min_size=1, max_size=4), st.sampled_from([None, "signed"]))
@settings(max_examples=300, deadline=None)
def test_every_entry_is_accounted_for_whatever_it_holds(entries: list[Any], top: Any) -> None:
    entries = [SOUND | entry if isinstance(entry, dict) and "value" in entry else entry for entry in entries]
    try:
        text = json.dumps(entries)
        found = read_patch_list(text, NAMES, top=top)
    except PlanInvalid as error:
        refused = error
    else:
        assert len(found.modifications) == len(entries)
        return
    assert refused.problems or "not sound JSON" in refused.message
