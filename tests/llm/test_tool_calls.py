"""Tools and shapes: what goes over the wire, and what is made of what comes back."""

import json

import pytest
from chat_server import Answer, Calls, ChatServer, Json
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import AnswerUnusable
from planner.llm import AnswerShape, Message, Reply, Request, Tool, ToolCall
from planner.llm.completions import read_completion, tidied
from planner.llm.failures import refused_feature
from planner.llm.redaction import Redactor
from planner.llm.retries import Failure

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
LOOK = Tool(name="look", description="Looks at a tensor.", parameters=SCHEMA)
SHAPE = AnswerShape(name="plan", json_schema=SCHEMA)
ASK = Request(messages=(Message(role="user", content="hi"),), max_output_tokens=50)
WITH_TOOLS = ASK.model_copy(update={"tools": (LOOK,)})
NOBODY = Redactor([])


def shaped(rung, **more):
    return ASK.model_copy(update={"shape": SHAPE, "rung": rung, **more})


def sent(transport, request, item):
    """What goes over the wire, and the reply."""
    with ChatServer([item]) as server:
        reply = transport(server).complete(request)
    return server.requests[0].body, reply


def read(request, *calls, reason="tool_calls", **message):
    message = {"content": None, "tool_calls": list(calls), **message}
    return read_completion({"choices": [{"finish_reason": reason, "message": message}]}, request, NOBODY)


def call(name="look", arguments="{}", **more):
    return {"id": "x", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_tools_are_offered_and_called(transport):
    request = WITH_TOOLS.model_copy(update={"seed": 7, "sample": 3, "temperature": 0.5})
    body, reply = sent(transport, request, Calls([("look", {"a": 1}), ("look", '{"a": ')], ids=["one", "two"]))
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    function = {"name": "look", "description": "Looks at a tensor.", "parameters": SCHEMA}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert (body["seed"], body["temperature"], body["max_tokens"]) == (7, 0.5, 50)
    assert set(body) == {"model", "messages", "max_tokens", "temperature", "seed", "tools"}
    assert (reply.text, reply.finish_reason, reply.rung) == ("", "tool_calls", "text")
    assert reply.tool_calls == (
        ToolCall(id="one", name="look", arguments='{"a": 1}'),
        ToolCall(id="two", name="look", arguments='{"a": '),
    )
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (11, 7)


def test_a_conversation_with_results_is_sent_in_the_form_of_openai(transport):
    calls = (ToolCall(id="one", name="look", arguments='{"a": 1}'),)
    messages = (
        *ASK.messages,
        Message(role="assistant", content="", tool_calls=calls),
        Message(role="tool", content="it is 7", tool_call_id="one"),
        Message(role="assistant", content="so", tool_calls=calls),
        Message(role="tool", content="", tool_call_id="one"),
    )
    body, reply = sent(transport, WITH_TOOLS.model_copy(update={"messages": messages}), Answer("done"))
    entry = {"id": "one", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    # litellm leaves out what is null.
    assert [{"content": None, **message} for message in body["messages"][1:]] == [
        {"role": "assistant", "content": None, "tool_calls": [entry]},
        {"role": "tool", "content": "it is 7", "tool_call_id": "one"},
        {"role": "assistant", "content": "so", "tool_calls": [entry]},
        {"role": "tool", "content": "", "tool_call_id": "one"},
    ]
    assert (reply.text, reply.tool_calls) == ("done", ())


@pytest.mark.parametrize(
    ("rung", "extra"),
    [
        (
            "json_schema",
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "plan", "strict": True, "schema": SCHEMA},
                }
            },
        ),
        ("json_object", {"response_format": {"type": "json_object"}}),
        ("text", {}),
    ],
)
def test_the_rungs_of_a_shape(rung, extra, transport):
    body, reply = sent(transport, shaped(rung), Answer('{"a": 1}'))
    assert {name: body[name] for name in body if name not in ("model", "messages", "max_tokens")} == extra
    assert (reply.text, reply.rung) == ('{"a": 1}', rung)


@pytest.mark.parametrize("reason", ["tool_calls", "stop", "function_call"])
def test_a_shape_as_a_tool_that_must_be_called(reason, transport):
    body, reply = sent(transport, shaped("tool"), Calls([("plan", {"a": 1})], finish_reason=reason))
    assert body["tool_choice"] == {"type": "function", "function": {"name": "plan"}}
    (tool,) = body["tools"]
    assert (tool["function"]["name"], tool["function"]["parameters"]) == ("plan", SCHEMA)
    assert (reply.text, reply.tool_calls, reply.rung) == ('{"a": 1}', (), "tool")


def test_a_shape_as_a_tool_beside_others_leaves_the_choice(transport):
    request = shaped("tool", tools=(LOOK,))
    body, reply = sent(transport, request, Calls([("look", {"a": 2})]))
    assert body["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in body["tools"]] == ["look", "plan"]
    assert (reply.text, [found.name for found in reply.tool_calls]) == ("", ["look"])
    answered = read(request, call(), call("plan", '{"a": 1}'), call("plan", '{"a": 2}'))
    assert (answered.text, answered.tool_calls) == ('{"a": 1}', ())
    assert read(request, content='{"a": 3}', reason="stop").text == '{"a": 3}'


def test_calls_beside_a_text_and_under_the_reason_stop(transport):
    _, reply = sent(transport, WITH_TOOLS, Calls([("look", {"a": 1})], text="I look.", finish_reason="stop"))
    assert (reply.text, len(reply.tool_calls)) == ("I look.", 1)
    assert reply.finish_reason in ("stop", "tool_calls")  # litellm corrects it


def test_arguments_as_an_object_and_calls_without_ids(transport):
    item = Calls([("look", {"a": "grüße"}), ("look", {}), ("look", {})], ids=[None, "", "call_1"], as_objects=True)
    _, reply = sent(transport, WITH_TOOLS, item)
    assert json.loads(reply.tool_calls[0].arguments) == {"a": "grüße"}
    assert reply.tool_calls[2].id == "call_1"
    assert len({found.id for found in reply.tool_calls}) == 3


def test_the_call_of_an_older_form(transport):
    message = {"content": None, "function_call": {"name": "look", "arguments": "{}"}}
    item = Json({"choices": [{"finish_reason": "function_call", "message": message}]})
    _, reply = sent(transport, WITH_TOOLS, item)
    assert [(found.name, found.arguments) for found in reply.tool_calls] == [("look", "{}")]
    assert reply.tool_calls[0].id


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=5)
    | st.lists(st.integers(0, 9), max_size=2)
)


@given(st.lists(st.one_of(st.none(), st.sampled_from(["", "x", "call_1", "call_2"]), ANYTHING), max_size=32))
def test_ids_are_unique_and_kept_where_they_can_be(ids):
    reply = read(WITH_TOOLS, *[call(id=identity) for identity in ids], content="text")
    found = [made.id for made in reply.tool_calls]
    assert len(set(found)) == len(found) == len(ids)
    assert all(found)
    for identity in {identity for identity in ids if isinstance(identity, str) and identity.strip()}:
        assert found[ids.index(identity)] == identity


@given(ANYTHING | st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2))
def test_arguments_are_always_text(arguments):
    (found,) = read(WITH_TOOLS, call(arguments=arguments)).tool_calls
    if isinstance(arguments, str):
        assert found.arguments == arguments
    else:
        assert json.loads(found.arguments) == ({} if arguments is None else arguments)


@pytest.mark.parametrize(
    "wrong",
    [None, 3, "look", {}, {"function": None}, {"function": "look"}, call(None), call(3), call(""), call(" "), []],
    ids=str,
)
def test_a_call_that_names_nothing(wrong):
    failure = read(WITH_TOOLS, call(), wrong)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.can_pass) == (AnswerUnusable, False)
    assert "without a name" in failure.message


def test_32_calls_are_taken_and_33_are_not():
    assert len(read(WITH_TOOLS, *[call()] * 32).tool_calls) == 32
    assert "33 tool calls" in read(WITH_TOOLS, *[call()] * 33).message
    assert "as dict" in read(WITH_TOOLS, tool_calls={"name": "look"}).message


def test_calls_are_read_only_where_tools_were_offered():
    assert read(ASK, call(), reason="stop", content="text").tool_calls == ()
    for request in (ASK, shaped("text"), shaped("json_schema")):
        assert "'tool_calls'" in read(request, call(), content="text").message
        assert "no text" in read(request, call(), reason="stop").message


@given(
    st.dictionaries(st.sampled_from(["content", "tool_calls", "function_call", "refusal", "reasoning"]), ANYTHING),
    st.one_of(st.sampled_from(["stop", "tool_calls", "length", None]), ANYTHING),
    ANYTHING | st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), ANYTHING),
    st.sampled_from([ASK, WITH_TOOLS, shaped("tool")]),
)
def test_any_message_is_a_reply_or_a_failure_and_tidying_changes_nothing_of_it(message, reason, usage, request):
    value = {"model": "m", "choices": [{"finish_reason": reason, "message": message}], "usage": usage}
    outcome = read_completion(value, request, NOBODY)
    assert isinstance(outcome, Reply | Failure)
    tidy = tidied(json.dumps(value).encode(), may_call=bool(request.tools) or request.rung == "tool", redactor=NOBODY)
    if isinstance(outcome, Failure):
        assert tidy == outcome
        return
    again = read_completion(json.loads(tidy), request, NOBODY)
    assert again.model_copy(update={"finish_reason": ""}) == outcome.model_copy(update={"finish_reason": ""})


# What endpoints were seen to say, and what it is about.
REFUSALS = [
    (400, "This response_format type is unavailable now", "json_schema", "json_schema"),
    (400, "'response_format.type' must be 'json_schema' or 'text'", "json_object", "json_object"),
    (422, "[{'loc': ['body', 'response_format', 'json_schema'], 'msg': 'Extra inputs'}]", "json_schema", "json_schema"),
    (400, "Grammar error: unimplemented keys: ['minItems']", "json_schema", "json_schema"),
    (400, "Invalid schema for response_format 'plan': 'default' is not permitted", "json_schema", "json_schema"),
    (400, "Structured outputs are not supported by this model", "json_schema", "json_schema"),
    (
        400,
        "Function calling with a response mime type: 'application/json' is unsupported",
        "json_object+",
        "json_object",
    ),
    (400, "registry.ollama.ai/library/x:latest does not support tools", "text+", "tools"),
    (400, "registry.ollama.ai/library/x:latest does not support tools", "json_schema+", "tools"),
    (500, "tools param requires --jinja flag", "text+", "tools"),
    (404, "No endpoints found that support tool use", "text+", "tools"),
    (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', "text+", "tools"),
    (400, "tool_choice is not supported", "tool", "tool"),
    (400, "m does not support tools", "tool", "tool"),
    (400, "tool_choice 'required' is not supported", "tool+", "tool"),
    (501, "function calling is not implemented", "text+", "tools"),
    # about something else
    (400, "this is about tools, which nobody asked for", "text", ""),
    (400, "this is about response_format, which nobody asked for", "text+", ""),
    (400, "maximum context length is 4096 tokens, with tools", "text+", ""),
    (400, "the schema and the prompt exceed the context window", "json_schema", ""),
    (400, "temperature must be below 2", "json_schema+", ""),
    (404, "the function-7b model was not found", "text+", ""),
    (500, "cloud function crashed", "text+", ""),
    (400, "my-tools-model is not a model", "text+", ""),
    (401, "response_format needs another key", "json_schema", ""),
    (429, "too many tools", "text+", ""),
    (503, "json_schema backend is unavailable", "json_schema", ""),
]


@pytest.mark.parametrize(("status", "said", "asked", "feature"), REFUSALS)
def test_what_an_endpoint_refuses(status, said, asked, feature):
    request = shaped(asked.rstrip("+"), tools=(LOOK,) if asked.endswith("+") else ())
    assert refused_feature(status, said, request, "my-tools-model") == feature


def test_a_rung_without_a_shape_is_no_feature():
    assert refused_feature(400, "no response_format", ASK.model_copy(update={"rung": "json_schema"}), "m") == ""
