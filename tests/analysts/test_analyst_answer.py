"""From a model's text to modifications: what is taken, and what goes back with a reason."""

from __future__ import annotations

import json

import pytest

from planner.analysts.answer import Answer, read_answer


def refused(text: str) -> str:
    problems = read_answer(text).problems
    assert problems
    return "\n".join(str(problem) for problem in problems)


def test_a_bare_object_and_one_fenced_block_are_the_same_answer(answer):
    text = answer()
    bare = read_answer(text)
    assert bare.problems == ()
    assert bare.note == "one careful step"
    assert read_answer(f"\n  {text}\n\n") == bare
    assert read_answer(f"```json\n{text}\n```") == bare
    assert read_answer(f"Here it is:\n\n```\n{text}\n```\nI hope this helps.") == bare


def test_no_modification_is_an_answer():
    found = read_answer('{"note": "the statistics support no change", "modifications": []}')
    assert found == Answer(note="the statistics support no change", modifications=())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```json\n{}\n```\nor\n```json\n{}\n```", "2 fenced blocks"),
        ('Sure! {"modifications": []}', "not sound JSON"),
        ('{"modifications": []} is my answer', "not sound JSON"),
        ('{"modifications": [], "modifications": []}', "twice"),
        ('{"modifications": [], "note": NaN}', "NaN is not JSON"),
        ('{"modifications": [', "not sound JSON"),
        ("[]", "not a JSON object"),
        ("", "not sound JSON"),
        ("{}", "modifications: Field required"),
        ('{"modifications": {}}', "modifications: "),
        ('{"modifications": [], "plan": 1}', "plan: "),
        ("[" * 100_000, "nested too deep"),
        ('{"modifications": ' + "[" * 40 + "]" * 40 + "}", "nested too deep"),
        ('{"modifications": [1e400]}', "too large"),
        ('{"modifications": [' + "9" * 5000 + "]}", "digits"),
        ('{"modifications": [Infinity]}', "Infinity"),
        ('{"note": "' + "x" * 2**20 + '", "modifications": []}', "characters"),
    ],
    ids=range(17),
)
def test_what_is_refused_and_why(text, words):
    assert words in refused(text)


def test_every_problem_is_found_at_once_and_names_its_modification(answer):
    first, second = (json.loads(answer())["modifications"][0] for _ in range(2))
    first |= {"confidence": 3, "operation": {"kind": "scale"}}
    second |= {"id": "m02", "surprise": 1, "operation": {"kind": "explode"}}
    found = read_answer(json.dumps({"modifications": [first, second]})).problems
    text = [str(problem) for problem in found]
    assert len(found) == 4
    assert [problem.modification for problem in found] == ["m01", "m01", "m02", "m02"]
    assert any("operation.factor: Field required" in line for line in text), text
    assert any("confidence" in line for line in text)
    assert any("operations: scale" in line for line in text), "a wrong kind is told which there are"


@pytest.mark.parametrize("value", ["0.4", True, None, 1.5, -0.1])
def test_a_confidence_that_is_no_number_from_0_to_1_is_refused(answer, value):
    assert "confidence" in refused(answer(confidence=value))


def test_the_readable_ones_are_kept_beside_the_problems(answer):
    good, bad = (json.loads(answer())["modifications"][0] for _ in range(2))
    found = read_answer(json.dumps({"note": "n", "modifications": [good, bad | {"id": "m02", "confidence": 3}]}))
    assert [one.id for one in found.modifications] == ["m01"]
    assert [problem.modification for problem in found.problems] == ["m02"]
    assert found.note == "n"


def test_null_means_not_given_where_something_may_be_left_out(answer):
    spelled = json.loads(answer())
    spelled["modifications"][0]["target"] |= {"roles": None, "layers": None, "elements": None}
    assert read_answer(json.dumps(spelled)) == read_answer(answer())
    wrong = answer(reasoning=None)
    assert "reasoning" in refused(wrong), "but not where it is needed"
