"""Choices of elements: what they may say, and that a plan without one is written as it always was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from planner.plan import ELEMENTS, AllElements, Elements, Target

ADAPTER: TypeAdapter[Any] = TypeAdapter(Elements)


def test_a_target_that_says_nothing_means_every_element_and_is_written_so() -> None:
    target = Target(layers="1")
    assert target.elements == AllElements()
    assert json.loads(target.model_dump_json())["elements"] == {"kind": "all"}


@pytest.mark.parametrize(
    ("document", "more"),
    [
        ({"kind": "all"}, {}),
        ({"kind": "rows", "indices": "0-3,7"}, {}),
        ({"kind": "columns", "indices": "5"}, {}),
        ({"kind": "heads", "heads": "0,3"}, {"part": None}),
        ({"kind": "heads", "heads": "0", "part": "output"}, {}),
        ({"kind": "tokens", "texts": [" Paris"]}, {"ids": [], "each": False, "spaces": "as_written"}),
        ({"kind": "tokens", "ids": [5, 6], "each": True, "spaces": "both"}, {"texts": []}),
        ({"kind": "magnitude_quantile", "above": 0.9}, {"below": None}),
        ({"kind": "signed_quantile", "below": 0.1}, {"above": None}),
        ({"kind": "value_range", "minimum": -1.0}, {"maximum": None}),
        ({"kind": "value_range", "minimum": 0.5, "maximum": 0.5}, {}),
    ],
)
def test_every_choice_is_read_strictly_and_written_back(document: dict[str, Any], more: dict[str, Any]) -> None:
    found = ADAPTER.validate_json(json.dumps(document), strict=True)
    assert type(found) is ELEMENTS[document["kind"]]
    assert json.loads(found.model_dump_json()) == document | more
    assert Target(layers="1", elements=found).elements is found


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"kind": "rows"}, "Field required"),
        ({"kind": "rows", "indices": ""}, "at least 1 character"),
        ({"kind": "rows", "indices": "3-1"}, "runs backwards"),
        ({"kind": "rows", "indices": "0-9999999"}, "too long"),
        ({"kind": "rows", "indices": [0, 1]}, "valid string"),
        ({"kind": "columns", "rows": "1"}, "not permitted"),
        ({"kind": "heads", "heads": "-1"}, "not a list of numbers"),
        ({"kind": "tokens"}, "name tokens by"),
        ({"kind": "tokens", "texts": [""]}, "at least 1 character"),
        ({"kind": "tokens", "texts": ["x" * 257]}, "at most 256"),
        ({"kind": "tokens", "texts": "Paris"}, "valid array"),
        ({"kind": "tokens", "ids": [-1]}, "greater than or equal to 0"),
        ({"kind": "tokens", "ids": [2**31]}, "less than"),
        ({"kind": "tokens", "ids": [True]}, "valid integer"),
        ({"kind": "tokens", "ids": [1], "each": 1}, "valid boolean"),
        ({"kind": "tokens", "ids": [1], "spaces": "maybe"}, "'as_written'"),
        ({"kind": "magnitude_quantile"}, "either `above` or `below`"),
        ({"kind": "magnitude_quantile", "above": 0.9, "below": 0.1}, "either `above` or `below`"),
        ({"kind": "signed_quantile", "above": 1}, "less than 1"),
        ({"kind": "signed_quantile", "below": 0}, "greater than 0"),
        ({"kind": "signed_quantile", "above": "10%"}, "valid number"),
        ({"kind": "value_range"}, "needs a minimum, a maximum or both"),
        ({"kind": "value_range", "minimum": 1, "maximum": 0}, "is above the maximum"),
        ({"kind": "top"}, "must say of what"),
        ({"kind": "top 10%"}, "must say of what"),
        ({}, "the kind is one of all, rows, columns, heads, tokens, magnitude_quantile, signed_quantile, value_range"),
    ],
)
def test_what_makes_no_sense_is_refused(document: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_json(json.dumps(document), strict=True)
    assert said in str(caught.value)


def test_every_choice_and_field_says_what_it_is() -> None:
    for kind in ELEMENTS.values():
        assert kind.__doc__
        assert all(field.description for field in kind.model_fields.values()), kind
