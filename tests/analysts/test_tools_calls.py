"""Whatever a model writes, a call gives a short plain text; and what a model is offered, every endpoint takes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tool_benches import TINY, bench_of, good, refused

from planner.analysts.tools import TOOLS, AgentTool, call, offered
from planner.analysts.tools.calling import LONGEST_RESULT
from planner.llm import Request
from planner.profile.peers import STATISTICS

Q = "model.layers.2.self_attn.q_proj.weight"
SCALED = {"target": {"tensors": [Q]}, "operation": {"kind": "scale", "factor": 1.05}}
NAMES = [tool.name for tool in TOOLS]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return bench_of(TINY, tmp_path_factory.mktemp("cache"))


def objects_in(schema: Any):
    """Every schema in a schema."""
    if isinstance(schema, dict):
        yield schema
        for inner in schema.get("properties", {}).values():
            yield from objects_in(inner)
        for inner in (schema.get("items"), *schema.get("anyOf", ())):
            yield from objects_in(inner)


def all_tools(bench) -> dict[str, Any]:
    return {tool.name: (tool.parameters(bench), tool) for tool in TOOLS}


def test_every_schema_stays_inside_the_strict_subset(bench):
    for name, (schema, _) in all_tools(bench).items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        for part in objects_in(schema):
            allowed = {"type", "properties", "required", "additionalProperties", "items", "anyOf", "enum"}
            assert part.keys() <= allowed | {"description"}, name
            assert "type" in part or "anyOf" in part, name
            if part.get("type") == "object":
                assert part["additionalProperties"] is False
                assert part["required"] == list(part["properties"])
            if part.get("type") == "array":
                assert part["items"]


def test_every_tool_and_every_field_is_described(bench):
    assert len(set(NAMES)) == len(NAMES) == 13
    tools = offered(bench)
    Request.model_validate({"messages": [{"role": "user", "content": "x"}], "tools": [t.model_dump() for t in tools]})
    for tool in tools:
        assert 20 < len(tool.description) < 400
        assert "\n" not in tool.description
        for field, schema in tool.parameters["properties"].items():
            assert schema.get("description"), (tool.name, field)
    assert sum(len(tool.model_dump_json()) for tool in tools) < 10_000, "they are sent with every request"


def test_every_subclass_is_listed():
    def leaves(kind: type) -> set[type]:
        below = kind.__subclasses__()
        return {kind} if not below else set().union(*map(leaves, below))

    made = {kind for kind in leaves(AgentTool) if "[" not in kind.__name__ and kind.__module__.startswith("planner.")}
    assert {type(tool) for tool in TOOLS} == {kind for kind in made if hasattr(kind, "name")}


SOUND = {
    "list_tensors": {"pattern": None, "role": "q_proj", "layers": None, "sort_by": "std", "most": None},
    "tensor_statistics": {"tensors": [Q]},
    "histogram": {"tensor": Q, "bins": None},
    "compare_layers": {"role": "q_proj", "statistic": "std"},
    "token_meanings": {"kind": "neuron", "layer": 0, "indices": [0], "expert": None},
    "find_tokens": {"texts": [" the"]},
    "describe_operation": {"kind": "scale"},
    "preview_modification": {"modification": json.dumps(SCALED), "most": None},
    "check_plan": {"modifications": [json.dumps(SCALED)]},
}


def test_what_the_schema_asks_for_is_taken(bench):
    tools = offered(bench)
    assert {tool.name for tool in tools} == SOUND.keys()
    for tool in tools:
        jsonschema.validate(SOUND[tool.name], tool.parameters)
        good(bench, tool.name, **SOUND[tool.name])


def test_what_may_be_null_need_not_be_given(bench):
    for name, arguments in SOUND.items():
        given_only = {key: value for key, value in arguments.items() if value is not None}
        assert good(bench, name, **given_only) == good(bench, name, **arguments)


@pytest.mark.parametrize("arguments", ["", "  \n", "{}"])
def test_no_arguments_are_none(bench, arguments):
    assert call("list_tensors", arguments, bench).ok
    found = call("histogram", arguments, bench)
    assert not found.ok
    assert "tensor: Field required" in found.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{", "not sound JSON"),
        ("[1]", "not a JSON object"),
        ('"{}"', "not a JSON object"),
        ('{"most": NaN}', "NaN"),
        ('{"most": 1e400}', "too large"),
        ('{"most": 1, "most": 2}', "twice"),
        ('{"most": ' + "9" * 40 + "}", "40 digits"),
        ('{"pattern": "\\ud800"}', "surrogate"),
        ("[" * 100_000, "at most 65,536"),
        ('{"pattern": ' + "[" * 2000 + "]" * 2000 + "}", "pattern"),
        ('{"pattern": "' + "x" * 70_000 + '"}', "at most 65,536"),
        ('{"most": 5.0}', "most: "),
        ('{"most": true, "role": 3, "moist": 1}', "role: "),
        ('{"most": true, "role": 3, "moist": 1}', "moist: there is no such field"),
        ('{"most": true, "role": 3, "moist": 1}', "Its fields: pattern, role, layers, sort_by, most"),
    ],
)
def test_arguments_that_are_none_are_refused_in_words(bench, arguments, said):
    found = call("list_tensors", arguments, bench)
    assert not found.ok
    assert said in found.text or "nested too deep" in found.text
    assert "the tool failed" not in found.text


def test_a_tool_that_is_not_there(bench):
    text = refused(bench, "list_tensor")
    assert "did you mean list_tensors?" in text
    for name in ("", "\x00\u202e", "x" * 10_000, "rm -rf"):
        found = call(name, "{}", bench)
        assert not found.ok
        assert "check_plan" in found.text
        assert len(found.text) < 500


def test_a_long_result_is_cut_and_says_how_much_and_what_to_do(bench):
    names = [tensor.name for tensor in bench.brief.profile.tensors][:8]
    text = good(bench, "tensor_statistics", tensors=names)
    assert len(text) <= LONGEST_RESULT
    kept, _, notice = text.rpartition("\n")
    assert notice.startswith("[cut here: ")
    assert "name fewer tensors" in notice
    tool = next(tool for tool in TOOLS if tool.name == "tensor_statistics")
    whole = tool.run(tool.Arguments(tensors=tuple(names)), bench)
    assert whole.startswith(kept + "\n"), "whole lines"
    left = whole[len(kept) :].strip("\n")
    assert f"{len(left.splitlines())} more lines, {len(left)} characters" in notice


def test_a_result_without_lines_is_cut_too(bench, monkeypatch):
    monkeypatch.setattr(type(TOOLS[0]), "run", lambda *_: "x" * 50_000)
    assert 5_000 < len(good(bench, "list_tensors")) <= LONGEST_RESULT


def test_a_result_is_plain_whatever_a_tool_says(bench, monkeypatch):
    assert "no tensor matches" in refused(bench, "list_tensors", pattern="é漢\u202e\x1b*")
    assert refused(bench, "list_tensors", pattern="é漢\u202e\x1b*").isascii()
    monkeypatch.setattr(type(TOOLS[0]), "run", lambda *_: "é\u202e a\x1b[31m\tb\r\nc\x00")
    assert good(bench, "list_tensors") == " a[31mb\nc"


def test_a_bug_is_a_refusal_that_gives_nothing_away(bench, monkeypatch):
    def broken(*_: object) -> str:
        raise ZeroDivisionError("sk-secret at /home/me")

    monkeypatch.setattr(type(TOOLS[0]), "run", broken)
    found = call("list_tensors", "{}", bench)
    assert (found.ok, found.text) == (False, "the tool failed: ZeroDivisionError")


def test_an_interrupt_passes(bench, monkeypatch):
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(TOOLS[0]), "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call("list_tensors", "{}", bench)


def sound_result(bench, name: str, arguments: str) -> None:
    found = call(name, arguments, bench)
    assert found.text
    assert len(found.text) <= LONGEST_RESULT
    assert all(" " <= c <= "~" or c == "\n" for c in found.text)
    assert not found.text.startswith("the tool failed"), found.text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES) | st.text(), arguments=st.text())
def test_no_text_breaks_a_call(bench, name, arguments):
    sound_result(bench, name, arguments)


ODD = st.none() | st.booleans() | st.integers(-3, 300) | st.integers() | st.floats() | st.text(max_size=40)
LIKELY = st.sampled_from(
    [Q, "*", "model.layers.{0-3}.*", "q_proj", "0-3", "5", "neuron", "token", "scale", "units", " the", *STATISTICS]
)
TARGETS = st.fixed_dictionaries(
    {},
    optional={
        "tensors": st.lists(LIKELY | ODD, max_size=3) | ODD,
        "roles": st.lists(LIKELY, max_size=2) | ODD,
        "layers": LIKELY | ODD,
        "elements": st.fixed_dictionaries(
            {"kind": st.sampled_from(["rows", "heads", "tokens"]), "indices": LIKELY | ODD}
        )
        | ODD,
    },
)
OPERATIONS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["scale", "shift", "zero", "clamp", "project_out", "boost"]) | ODD},
    optional={"factor": st.floats() | ODD, "offset": st.floats() | ODD, "maximum": ODD, "alpha": st.floats(0, 1)},
)
MODIFICATIONS = st.fixed_dictionaries(
    {"target": TARGETS | ODD, "operation": OPERATIONS | ODD}, optional={"id": LIKELY | ODD, "evidence": ODD}
)
FIELDS = sorted({field for tool in TOOLS for field in tool.Arguments.model_fields})
VALUES = (
    LIKELY | ODD | st.lists(LIKELY | ODD | MODIFICATIONS, max_size=4) | MODIFICATIONS | MODIFICATIONS.map(json.dumps)
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_no_object_breaks_a_call(bench, data, name):
    tool = next(tool for tool in TOOLS if tool.name == name)
    fields = st.sampled_from([*tool.Arguments.model_fields] * 4 + FIELDS)
    sound_result(bench, name, json.dumps(data.draw(st.dictionaries(fields, VALUES, max_size=5))))
