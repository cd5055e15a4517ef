"""`planner operations`: the catalogue for people and programs, from the classes themselves."""

from __future__ import annotations

import json

import pytest

from planner.operations import OPERATIONS
from planner.plan import ELEMENTS


def test_every_operation_and_choice_of_elements_is_listed(planner):
    result = planner("operations")
    assert result.status == 0
    for kind, operation in (OPERATIONS | ELEMENTS).items():
        first = " ".join((operation.__doc__ or "").split())[:60]
        assert f"  {kind}: {first}" in result.out


@pytest.mark.parametrize("kind", [*OPERATIONS, *ELEMENTS])
def test_one_is_shown_with_its_parameters_and_worked_examples(planner, kind):
    result = planner("operations", kind)
    assert result.status == 0
    record = (OPERATIONS | ELEMENTS)[kind]
    for name in record.model_fields.keys() - {"kind"}:
        assert f"\n  {name}: " in result.out
    assert result.out.count("example: ") == len(getattr(record, "EXAMPLES", ()))


def test_json_is_one_document(planner):
    found = json.loads(planner("operations", "--json").out)
    assert [entry["kind"] for entry in found["operations"]] == list(OPERATIONS)
    assert [entry["kind"] for entry in found["elements"]] == list(ELEMENTS)
    assert found["operations"][0]["parameters"].keys() == {"factor"}


def test_an_unknown_one_is_wrong_usage_and_says_what_there_is(planner):
    result = planner("operations", "explode")
    assert result.status == 2
    assert "there is no operation 'explode'" in result.err
    assert "scale, shift" in result.err
