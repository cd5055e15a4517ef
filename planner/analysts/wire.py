"""The plan as it goes over the wire: a schema that strict structured output takes, and the way back from it.

OpenAI's strict mode (and the grammars of vLLM, llama.cpp and others) take a subset of JSON schema: every property is
required and no other is allowed, no `oneOf`, `allOf`, `default`, `$ref` to look up, no bounds. So what is optional here
is nullable there, and a null means that it was not given. The local types stay the judge: an answer is read strictly
whatever the server promised.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from planner.analysts.aliases import Aliases
from planner.llm import AnswerShape
from planner.operations import OPERATIONS
from planner.plan import ELEMENTS, Policy
from planner.records import Record

__all__ = ["answer_shape", "modification_schema", "strict", "unwired"]

_TEXT = {"type": "string"}
_TEXTS_OR_NOT = {"anyOf": [{"type": "array", "items": _TEXT}, {"type": "null"}]}
_TEXT_OR_NOT = {"anyOf": [_TEXT, {"type": "null"}]}
_KEPT = ("type", "enum")


def answer_shape(policy: Policy) -> AnswerShape:
    """The shape of an answer: a note and modifications, with the operations that the policy allows."""
    return _answer_shape(policy.operations)


@lru_cache(maxsize=8)
def _answer_shape(operations: tuple[str, ...]) -> AnswerShape:
    shared: dict[str, Any] = {}
    schema = _object(note=_TEXT, modifications={"type": "array", "items": _modification(operations, shared)})
    return AnswerShape(name="plan", json_schema=schema | {"$defs": shared})


def modification_schema() -> dict[str, Any]:
    """The schema of a draft in a tool's arguments: JSON text, because every tool would repeat all the operations."""
    return {
        "type": "string",
        "description": 'JSON text such as {"target": {"roles": ["down_proj"], "layers": "3-5"}, "operation": '
        '{"kind": "scale", "factor": 1.05}}, as in a plan',
    }


def strict(record: type[Record]) -> dict[str, Any]:
    """The schema of a record inside the strict subset, without descriptions."""
    return _of_record(record, None)


def unwired(document: Any, aliases: Aliases | None = None) -> Any:
    """A modification as it came, with what was not given left out and the names of tensors put back for aliases.

    What is not shaped like a modification passes unchanged: the strict reading that follows says what is wrong.
    """
    if not isinstance(document, dict):
        return document
    found = dict(document)
    target = found.get("target")
    if isinstance(target, dict):
        target = _given(target)
        if isinstance(target.get("elements"), dict):
            target["elements"] = _given(target["elements"])
        if aliases and isinstance(target.get("tensors"), list):
            target["tensors"] = [aliases.target(n) if isinstance(n, str) else n for n in target["tensors"]]
        found["target"] = target
    if isinstance(found.get("operation"), dict):
        found["operation"] = {
            name: _given(value) if isinstance(value, dict) else value
            for name, value in _given(found["operation"]).items()
        }
    if aliases and isinstance(found.get("evidence"), list):
        found["evidence"] = [
            cited | {"tensor": aliases.real(cited["tensor"])}
            if isinstance(cited, dict) and isinstance(cited.get("tensor"), str)
            else cited
            for cited in found["evidence"]
        ]
    return found


def _given(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


def _modification(operations: tuple[str, ...], shared: dict[str, Any]) -> dict[str, Any]:
    elements = [_of_record(choice, shared) for choice in ELEMENTS.values()]
    return _object(
        id=_TEXT,
        target=_object(
            tensors=_TEXTS_OR_NOT,
            roles=_TEXTS_OR_NOT,
            layers=_TEXT_OR_NOT,
            elements={"anyOf": [*elements, {"type": "null"}]},
        ),
        operation={"anyOf": [_of_record(OPERATIONS[kind], shared) for kind in operations]},
        reasoning=_TEXT,
        confidence={"type": "number"},
        expected_impact=_TEXT,
        evidence={
            "type": "array",
            "items": _object(tensor=_TEXT, fact=_TEXT, value={"anyOf": [{"type": "number"}, {"type": "null"}]}),
        },
    )


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _of_record(record: type[Record], shared: dict[str, Any] | None) -> dict[str, Any]:
    """`shared` gathers the parts that several operations have, which are then pointed to; without it all is spelled."""
    schema = record.model_json_schema()
    return _strict(schema, schema.get("$defs", {}), shared)


def _strict(schema: Mapping[str, Any], definitions: Mapping[str, Any], shared: dict[str, Any] | None) -> dict[str, Any]:
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        if shared is None:
            return _strict(definitions[name], definitions, None)
        if name not in shared:
            shared[name] = _strict(definitions[name], definitions, shared)
        return {"$ref": f"#/$defs/{name}"}
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        flat: list[dict[str, Any]] = []
        for choice in (_strict(choice, definitions, shared) for choice in choices):
            flat += [c for c in choice.get("anyOf", [choice]) if c not in flat]
        return {"anyOf": flat}
    if "const" in schema:
        return {"type": "string", "enum": [schema["const"]]}
    if schema.get("type") == "object":
        required = schema.get("required", ())
        properties = {}
        for name, inner in schema.get("properties", {}).items():
            found = _strict(inner, definitions, shared)
            # `kind` has a default in the types, so that code need not say it; on the wire it tells them apart.
            properties[name] = found if name in required or "const" in inner else _nullable(found)
        return _object(**properties)
    if schema.get("type") == "array":
        inner = schema.get("items") or schema["prefixItems"][0]
        return {"type": "array", "items": _strict(inner, definitions, shared)}
    return {key: schema[key] for key in _KEPT if key in schema}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    choices = schema.get("anyOf", [schema])
    return {"anyOf": choices if {"type": "null"} in choices else [*choices, {"type": "null"}]}
