"""The plan on the wire: inside the strict subset, and back again without loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from planner.analysts import Asking, LLMAnalyst
from planner.analysts.answer import read_answer
from planner.analysts.wire import answer_shape, unwired
from planner.llm import ScriptedClient
from planner.operations import OPERATIONS
from planner.plan import ELEMENTS, Policy

SHAPE = answer_shape(Policy()).json_schema
ALLOWED = {"type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "$ref", "$defs"}
EXAMPLES = [(kind, {"kind": kind} | example.parameters) for kind, one in OPERATIONS.items() for example in one.EXAMPLES]
CHOICES = [
    {"kind": "all"},
    {"kind": "rows", "indices": "0-3,7"},
    {"kind": "columns", "indices": "1"},
    {"kind": "heads", "heads": "0,2", "part": "key"},
    {"kind": "heads", "heads": "0,2"},
    {"kind": "tokens", "texts": [" Paris"], "each": True},
    {"kind": "tokens", "ids": [3, 5], "spaces": "both"},
    {"kind": "magnitude_quantile", "above": 0.9},
    {"kind": "signed_quantile", "below": 0.1},
    {"kind": "value_range", "minimum": -0.5},
]


def schemas(schema: Any, depth: int = 1) -> Iterator[tuple[dict[str, Any], int]]:
    """Every schema inside a schema, with its depth."""
    yield schema, depth
    for inner in schema.get("properties", {}).values():
        yield from schemas(inner, depth + 1)
    for inner in (*schema.get("anyOf", ()), *schema.get("$defs", {}).values()):
        yield from schemas(inner, depth)
    if "items" in schema:
        yield from schemas(schema["items"], depth + 1)


def test_the_shape_stays_inside_the_strict_subset():
    """OpenAI's rules of February 2026, which the grammars of local servers share."""
    found = list(schemas(SHAPE))
    for schema, _ in found:
        assert set(schema) <= ALLOWED, schema
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False
            assert set(schema["required"]) == set(schema["properties"])
        else:
            assert "required" not in schema
        if "$ref" in schema:
            assert schema["$ref"].removeprefix("#/$defs/") in SHAPE["$defs"]
    assert SHAPE["type"] == "object", "no choice at the root"
    assert max(depth for _, depth in found) <= 10
    assert sum(len(schema.get("properties", {})) for schema, _ in found) <= 5000
    assert sum(len(schema.get("enum", ())) for schema, _ in found) <= 1000
    assert len(json.dumps(SHAPE)) <= 120_000
    jsonschema.Draft202012Validator.check_schema(SHAPE)


def test_the_operations_are_those_of_the_policy():
    shape = answer_shape(Policy(operations=("zero", "clamp"))).json_schema
    choices = shape["properties"]["modifications"]["items"]["properties"]["operation"]["anyOf"]
    assert [choice["properties"]["kind"]["enum"] for choice in choices] == [["zero"], ["clamp"]]
    assert "Factors" not in shape["$defs"]


def obedient(value: Any, schema: Any) -> Any:
    """The value as a server writes it that enforces the schema: every property there, null for what is not given."""
    if "$ref" in schema:
        return obedient(value, SHAPE["$defs"][schema["$ref"].rpartition("/")[2]])
    for choice in schema.get("anyOf", ()):
        found = SHAPE["$defs"][choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
        kinds = found.get("properties", {}).get("kind", {}).get("enum")
        if isinstance(value, list) and found.get("type") == "array":
            return obedient(value, found)
        fits = isinstance(value, dict) and found.get("type") == "object" and set(value) <= set(found["properties"])
        if fits and (kinds is None or value.get("kind") in kinds):
            return obedient(value, found)
    if schema.get("type") == "array" and isinstance(value, list):
        return [obedient(one, schema["items"]) for one in value]
    if schema.get("type") == "object" and isinstance(value, dict):
        return {name: obedient(value.get(name), inner) for name, inner in schema["properties"].items()}
    return value


def modification(operation: Any, elements: Any = None) -> dict[str, Any]:
    target = {"tensors": ["*"]} | ({"elements": elements} if elements else {})
    return {
        "id": "m01",
        "target": target,
        "operation": operation,
        "reasoning": "r",
        "confidence": 0.5,
        "expected_impact": "e",
        "evidence": [{"tensor": "t", "fact": "std", "value": None}],
    }


def round_trip(document: dict[str, Any]) -> None:
    answer = {"note": "n", "modifications": [document]}
    written = obedient(answer, SHAPE)
    jsonschema.validate(written, SHAPE)
    found = read_answer(json.dumps(written))
    assert found.problems == (), found.problems
    plain = read_answer(json.dumps(answer))
    assert plain.problems == (), plain.problems
    assert found == plain, "with nulls and without them it is the same"
    assert found.modifications[0].operation.model_dump(exclude_unset=True) == OPERATIONS[
        document["operation"]["kind"]
    ].model_validate(document["operation"]).model_dump(exclude_unset=True)


@pytest.mark.parametrize(("kind", "operation"), EXAMPLES, ids=[f"{kind}-{n}" for n, (kind, _) in enumerate(EXAMPLES)])
def test_every_example_of_every_operation_comes_back_as_it_was(kind, operation):
    round_trip(modification(operation))


@pytest.mark.parametrize("elements", CHOICES, ids=[str(n) for n in range(len(CHOICES))])
def test_every_choice_of_elements_comes_back_as_it_was(elements):
    round_trip(modification({"kind": "zero"}, elements))


def test_the_examples_are_of_all_operations_and_all_choices():
    assert {kind for kind, _ in EXAMPLES} == set(OPERATIONS)
    assert {choice["kind"] for choice in CHOICES} == set(ELEMENTS)


NUMBERS = [
    {"kind": "scale", "factor": 1.05},
    {"kind": "shift", "offset": 0.01},
    {"kind": "clamp", "minimum": -0.2, "maximum": 0.2},
    {"kind": "zero"},
    {"kind": "soft_threshold", "threshold": 0.01},
    {"kind": "noise", "std": 0.01, "seed": 3},
    {"kind": "reduce", "alpha": 0.1},
    {"kind": "boost", "alpha": 0.1},
    {"kind": "head_scale", "heads": "0", "factor": 1.1},
    {"kind": "neuron_scale", "neurons": "0-3", "factor": 0.9},
    {"kind": "channel_scale", "channels": "1,2", "factor": 1.1},
    {"kind": "normalize", "norm": 1.0, "per": "rows"},
    {"kind": "spectral_scale", "first": 1, "factor": 0.9},
    {"kind": "spectral_clamp", "maximum": 1.0},
    {"kind": "rank_reduce", "rank": 8},
]
WHERE = {"reduce": "embed", "boost": "embed", "head_scale": "attention", "neuron_scale": "mlp", "channel_scale": "all"}


@pytest.mark.parametrize("operation", NUMBERS, ids=[one["kind"] for one in NUMBERS])
def test_an_obedient_model_gets_every_operation_through_to_a_plan(brief, tiny_model, tiny_profile, operation):
    """All operations that need no file beside the plan, end to end: asked, answered, read, checked."""
    kind = operation["kind"]
    target: dict[str, Any] = {
        "embed": {"roles": ["embed_tokens"], "elements": {"kind": "tokens", "ids": [5]}},
        "attention": {"layers": "2", "roles": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        "mlp": {"layers": "2", "roles": ["down_proj", "up_proj", "gate_proj"]},
        "all": {"layers": "2", "roles": ["down_proj"]},
    }.get(WHERE.get(kind, ""), {"tensors": ["model.layers.2.mlp.up_proj.weight"]})
    cited = tiny_profile.by_name["model.norm.weight"]
    document = modification(operation) | {
        "target": target,
        "evidence": [{"tensor": cited.name, "fact": "std", "value": cited.std}],
    }
    answer = json.dumps(obedient({"note": "n", "modifications": [document]}, SHAPE))
    plan = LLMAnalyst(ScriptedClient([answer]), Asking(tools=False, repairs=0)).propose(brief(tiny_model))
    assert plan.modifications[0].operation.kind == kind
    assert plan.analyst.first_answer_valid is True


def test_what_is_not_shaped_like_a_modification_passes_unchanged():
    for odd in (None, 3, "x", [], {}, {"target": 3, "operation": [], "evidence": {}}):
        assert unwired(odd) == odd
