"""The operations in words: everything that is allowed, in few words, and as the classes really are."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import TypeAdapter

from planner.analysts.catalogue import catalogue, described, elements_catalogue, operation_catalogue
from planner.llm.tokens import estimated_tokens
from planner.operations import OPERATIONS, AnyOperation
from planner.plan import ELEMENTS, Policy


def lines(text: str) -> dict[str, str]:
    return {found[1]: line for line in text.splitlines() if (found := re.match(r"- (\w+)[( ]", line))}


def test_all_of_it_takes_at_most_2000_tokens_and_a_line_each():
    text = catalogue(Policy())
    assert list(lines(text)) == [*OPERATIONS, *ELEMENTS]
    assert estimated_tokens(text) <= 2000


def test_what_the_policy_does_not_allow_is_not_there():
    text = catalogue(Policy(operations=("scale", "blend")))
    assert [kind for kind in lines(text) if kind in OPERATIONS] == ["scale", "blend"]
    assert list(lines(text))[2:] == list(ELEMENTS)
    assert "noise" not in text


@pytest.mark.parametrize("kind", [*OPERATIONS, *ELEMENTS])
def test_every_parameter_is_named_in_the_line_and_explained_in_full(kind):
    record = OPERATIONS.get(kind) or ELEMENTS[kind]
    line, full = lines(catalogue(Policy(), tools=False))[kind], described(kind)
    assert full.startswith(f"{kind}: ")
    assert " ".join(record.__doc__.split()) in full
    for name, field in record.model_fields.items():
        if name == "kind":
            continue
        assert re.search(rf"\b{name}\??: ", line)
        assert " ".join(field.description.split()) in full


def accepts(kind: str, **parameters: object) -> bool:
    try:
        TypeAdapter(AnyOperation).validate_python({"kind": kind} | parameters)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_ramp_is_offered_exactly_where_one_is_taken(kind):
    line = lines(catalogue(Policy(), tools=False))[kind]
    for name in OPERATIONS[kind].model_fields.keys() - {"kind"}:
        offered = "ramp" in re.search(rf"\b{name}\??: ([^,)]*)", line)[1]
        taken = any(
            accepts(kind, **example.parameters | {name: {"ramp": [0.5, 0.75]}}) for example in OPERATIONS[kind].EXAMPLES
        )
        assert offered == taken, name


@pytest.mark.parametrize("kind", OPERATIONS)
def test_exactly_those_are_marked_that_no_plan_without_a_file_can_use(kind):
    """Held against the examples: those with a file, an adapter or another checkpoint in them."""
    with_file = {"project_out", "rotate", "rank_one", "low_rank_add", "bake_steering", "blend"}
    line, full = (lines(catalogue(Policy(), tools=tools))[kind] for tools in (True, False))
    assert ("beside the plan" in line) == ("beside the plan" in full) == (kind in with_file)
    assert (f'describe_operation("{kind}")' in line) == (kind in with_file)
    assert "describe_operation" not in full
    assert (len(line) < 120) if kind in with_file else line == full
    assert ("It needs a file" in described(kind)) == (kind in with_file)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_the_examples_in_words_are_operations(kind):
    decode = json.JSONDecoder().raw_decode
    shown = re.findall(r"Example: (.*)", described(kind))
    assert len(shown) == len(OPERATIONS[kind].EXAMPLES)
    for example in shown:
        assert TypeAdapter(AnyOperation).validate_python(decode(example)[0]).kind == kind


def test_defaults_bounds_and_choices_are_in_the_line():
    text = lines(catalogue(Policy(), tools=False))
    assert 'part: output|query|key|value = "output"' in text["head_scale"]
    assert "first: integer >=1 = 1" in text["spectral_scale"]
    assert "above?: number >0 <1" in text["magnitude_quantile"]
    assert "factor: number|ramp|file with axis rows|columns" in text["scale"]
    assert "checkpoint: path" in text["blend"]


def test_the_written_examples_of_elements_are_elements():
    (heading,) = re.findall(r"^Elements of a target .*$", catalogue(Policy()), re.MULTILINE)
    shown = [json.loads(found) for found in re.findall(r"\{.*?\}", heading)]
    assert [example["kind"] for example in shown] == ["rows", "tokens"]
    for example in shown:
        assert ELEMENTS[example["kind"]].model_validate(example).kind == example["kind"]


def test_an_unknown_kind_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="there is no 'scales'; there are scale, shift"):
        described("scales")


def test_as_data_every_operation_and_choice_is_there():
    operations = {entry["kind"]: entry for entry in operation_catalogue()}
    assert list(operations) == list(OPERATIONS)
    for kind, entry in operations.items():
        assert entry["meaning"]
        assert entry["examples"]
        assert entry["parameters"].keys() == OPERATIONS[kind].model_fields.keys() - {"kind"}
    assert [entry["kind"] for entry in elements_catalogue()] == list(ELEMENTS)
