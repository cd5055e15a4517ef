"""Everything that providers, gateways and hostile servers were seen to do, against both transports.

Whatever comes back, the caller gets a whole reply or one typed error, in time, after few attempts; nothing is printed,
and the key is found nowhere.
"""

import logging
import time
import traceback
from dataclasses import dataclass, field

import openai.resources.chat  # noqa: F401 - imported before any test looks at the clock
import pytest
from chat_server import (
    Answer,
    BigHeaders,
    Calls,
    ChatServer,
    ChunkedCut,
    Cut,
    Drip,
    Drop,
    Endless,
    Hang,
    Item,
    Json,
    Lie,
    Raw,
    Redirect,
    Status,
    Trickle,
)

from planner.errors import (
    AnalystFailed,
    AnswerUnusable,
    EndpointRefused,
    EndpointUnreachable,
    FeatureRefused,
)
from planner.llm import AnswerShape, Message, Request, Tool

ASK = Request(messages=(Message(role="user", content="hi"),))
LOOK = Tool(name="look", description="Looks.", parameters={"type": "object", "properties": {}})
WITH_TOOLS = ASK.model_copy(update={"tools": (LOOK,)})
SHAPED = ASK.model_copy(
    update={"shape": AnswerShape(name="plan", json_schema={"type": "object"}), "rung": "json_schema"}
)
QUICK_S = 0.6


@dataclass(frozen=True)
class Fault:
    """What the server does, each time it is asked, and what has to come of it: an error, or the text of a reply."""

    item: Item
    outcome: type[AnalystFailed] | str
    says: str = ""
    """In the message or the hint of the error."""
    requests: int = 1
    ask: Request = field(default=ASK, repr=False)
    timeout_s: float = field(default=20.0, repr=False)


def choice(reason="stop", **message):
    return Json({"choices": [{"finish_reason": reason, "message": message}]})


def refusal(code, text):
    return Status(code, {"error": {"message": text}})


FAULTS = {
    # statuses
    "429": Fault(refusal(429, "slow down"), EndpointRefused, "rate of requests", 4),
    "429 with a short wait": Fault(Status(429, "slow", {"Retry-After": "0"}), EndpointRefused, "rate of requests", 4),
    "429 with a short wait in ms": Fault(Status(429, "", {"retry-after-ms": "1"}), EndpointRefused, "try again", 4),
    "429 with a long wait": Fault(Status(429, "slow", {"Retry-After": "3600"}), EndpointRefused, "3600 s from now"),
    "429 without credit": Fault(Status(429, {"error": {"code": "insufficient_quota"}}), EndpointRefused, "credit"),
    "500 with a page": Fault(Status(500, "<html><h1>Oops"), EndpointRefused, "<html><h1>Oops", 4),
    "503": Fault(refusal(503, "overloaded"), EndpointRefused, "answered 503: overloaded", 4),
    "401": Fault(refusal(401, "bad key"), EndpointRefused, "answered 401: bad key"),
    "403": Fault(refusal(403, "not for you"), EndpointRefused, "check "),
    "400": Fault(refusal(400, "no such luck"), EndpointRefused, "its message says why"),
    "400 context": Fault(refusal(400, "maximum context length is 4096 tokens"), EndpointRefused, "too long"),
    "404": Fault(refusal(404, "no such model"), EndpointRefused, "model"),
    "302": Fault(Redirect(302, "http://127.0.0.1:9/v1"), EndpointRefused, "points to http://127.0.0.1:9/v1"),
    "307": Fault(Redirect(307, "http://127.0.0.1:9/v1"), EndpointRefused, "redirects are not followed"),
    # bodies that are no completion
    "a login page": Fault(Raw(b"<html>Sign in", "text/html"), EndpointRefused, "not JSON"),
    "nothing": Fault(Raw(b""), EndpointRefused, "nothing"),
    "invalid UTF-8": Fault(Raw(b"\xff\xfe{"), EndpointRefused, "not JSON"),
    "events": Fault(Raw(b"data: {}\n\n", "text/event-stream; charset=utf-8"), EndpointRefused, "stream of events"),
    "a list": Fault(Json([1]), EndpointRefused, "a JSON list"),
    "an empty object": Fault(Json({}), EndpointRefused, "without choices"),
    "no choices": Fault(Json({"choices": []}), EndpointRefused, "without choices"),
    "choices null": Fault(Json({"choices": None}), EndpointRefused, "without choices"),
    "no message": Fault(Json({"choices": [{"finish_reason": "stop"}]}), EndpointRefused, "without a message"),
    "an error with 200": Fault(Json({"error": {"message": "upstream"}}), EndpointRefused, "an error: upstream"),
    "a key twice": Fault(Raw(b'{"choices": [], "choices": []}'), EndpointRefused, "stands twice"),
    "a coding nobody asked for": Fault(Status(200, "", {"Content-Encoding": "br"}), EndpointRefused, "coding"),
    "broken gzip": Fault(Status(200, "none", {"Content-Encoding": "gzip"}), EndpointRefused, "decode as gzip", 4),
    # bodies that end wrongly, or never
    "cut": Fault(Cut(), EndpointUnreachable, "no answer", 4),
    "cut without a length": Fault(Cut(length=False), EndpointRefused, "cut short", 4),
    "chunks cut": Fault(ChunkedCut(), EndpointUnreachable, "no answer", 4),
    "a length too long": Fault(Lie(20), EndpointUnreachable, "no answer", 4),
    "a length too short": Fault(Lie(-20), EndpointRefused, "cut short", 4),
    "dropped": Fault(Drop(), EndpointUnreachable, "no answer", 4),
    "huge headers": Fault(BigHeaders(), EndpointUnreachable, "no answer", 4),
    "endless": Fault(Endless(), EndpointRefused, "larger than 16 MiB"),
    "endless error": Fault(Endless(500), EndpointRefused, "larger than 16 MiB"),
    "hanging": Fault(Hang(), EndpointUnreachable, "within 0.6 s", timeout_s=QUICK_S),
    "trickling": Fault(Trickle(), EndpointUnreachable, "within 0.6 s", timeout_s=QUICK_S),
    "dripping": Fault(Drip(), EndpointUnreachable, "within 0.6 s", timeout_s=QUICK_S),
    # completions without usable text
    "content null": Fault(Answer(None), AnswerUnusable, "no text"),
    "only reasoning": Fault(Answer(None, reasoning="hmm"), AnswerUnusable, "reasoning and no text"),
    "only reasoning, elsewhere": Fault(choice(content="", reasoning="hmm"), AnswerUnusable, "reasoning and no text"),
    "length": Fault(Answer("half", finish_reason="length"), AnswerUnusable, "--max-output-tokens"),
    "length beside calls": Fault(
        Calls([("look", '{"a')], finish_reason="length"), AnswerUnusable, "cut off", ask=WITH_TOOLS
    ),
    "filtered": Fault(Answer("x", finish_reason="content_filter"), AnswerUnusable, "refused"),
    "refused": Fault(Answer(None, refusal="I will not"), AnswerUnusable, "I will not"),
    "an unknown reason": Fault(Answer("x", finish_reason="weird"), AnswerUnusable, "'weird'"),
    "calls nobody offered": Fault(Calls([("look", {})]), AnswerUnusable, "'tool_calls'"),
    "a call without a name": Fault(Calls([(None, {})]), AnswerUnusable, "without a name", ask=WITH_TOOLS),
    "calls without end": Fault(Calls([("look", {})] * 33), AnswerUnusable, "33 tool calls", ask=WITH_TOOLS),
    # features the endpoint does not know
    "no tools": Fault(refusal(400, "m does not support tools"), FeatureRefused, "tools", ask=WITH_TOOLS),
    "no tools without a flag": Fault(
        refusal(500, "tools param requires --jinja flag"), FeatureRefused, "tools", ask=WITH_TOOLS
    ),
    "no format": Fault(
        refusal(400, "This response_format type is unavailable now"), FeatureRefused, "json_schema", ask=SHAPED
    ),
    # odd, and whole all the same
    "JSON as a page": Fault(Raw(b'{"choices":[{"finish_reason":"stop","message":{"content":"a"}}]}', "text/html"), "a"),
    "no reason": Fault(Answer("a", finish_reason=None), "a"),
    "parts": Fault(Answer([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
    "one bad character": Fault(
        Raw(b'{"choices":[{"finish_reason":"stop","message":{"content":"a\xff"}}]}'), "a\N{REPLACEMENT CHARACTER}"
    ),
    "usage missing": Fault(Answer("a", usage=None), "a"),
    "usage a string": Fault(Answer("a", usage="many"), "a"),
    "usage negative": Fault(Answer("a", usage={"prompt_tokens": -1, "completion_tokens": -5}), "a"),
    "usage odd": Fault(Answer("a", usage={"prompt_tokens": "7", "completion_tokens": 1.5, "total_tokens": None}), "a"),
    "usage null": Fault(Answer("a", usage={"prompt_tokens": None, "completion_tokens": True}), "a"),
}


@pytest.fixture
def quiet(caplog, capfd, canary):
    """Fails when something was printed, or the key was logged."""
    caplog.set_level(logging.DEBUG)
    yield
    assert capfd.readouterr() == ("", "")
    logged = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert canary not in logged
    assert canary[-12:] not in logged


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_typed_error_or_a_whole_reply(name, transport, quiet, canary):
    fault = FAULTS[name]
    with ChatServer([fault.item], repeat_last=True) as server:
        client = transport(server, timeout_s=fault.timeout_s)
        began = time.monotonic()
        if isinstance(fault.outcome, str):
            reply = client.complete(fault.ask)
            assert (reply.text, reply.attempts) == (fault.outcome, 1)
            assert min(reply.usage.input_tokens, reply.usage.output_tokens) >= 0
            if "usage" in name:
                assert (reply.usage.input_tokens, reply.usage.output_tokens) == (0, 0)
        else:
            with pytest.raises(AnalystFailed) as caught:
                client.complete(fault.ask)
            refuted(caught.value, fault, canary)
        assert time.monotonic() - began < fault.timeout_s + 2
        assert len(server.requests) == fault.requests


def refuted(error, fault, key):
    assert type(error) is fault.outcome
    assert fault.says in error.message + " " + error.hint
    assert f"(after {fault.requests} attempt" in error.message
    assert (error.message + error.hint).isprintable()
    assert error.__cause__ is None
    assert error.__context__ is None
    if isinstance(error, FeatureRefused):
        assert error.feature == fault.says
    shown = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert key not in shown


def echo(code):
    def item(received):
        key = received.headers["authorization"].split()[1]
        return Status(code, {"error": {"message": f"tools of {key} are not supported, {key}"}}, {"X-Echo": key})

    return item


ECHOES = {
    "400 about tools": (echo(400), FeatureRefused, 1),
    "404 about tools": (echo(404), FeatureRefused, 1),
    "500 about tools": (echo(500), FeatureRefused, 1),
    "503": (echo(503), EndpointRefused, 4),
    "redirect": (lambda got: Redirect(302, f"http://127.0.0.1:9/{got.headers['authorization']}"), EndpointRefused, 1),
    "call without a name": (lambda got: Calls([(None, got.headers["authorization"])]), AnswerUnusable, 1),
    "a reason": (lambda got: Calls([("look", {})], finish_reason=got.headers["authorization"]), AnswerUnusable, 1),
    "a coding": (
        lambda got: Status(200, "", {"Content-Encoding": got.headers["authorization"].split()[1]}),
        EndpointRefused,
        1,
    ),
    "calls as text": (
        lambda got: choice("tool_calls", tool_calls=got.headers["authorization"]),
        AnswerUnusable,
        1,
    ),
}


@pytest.mark.parametrize("name", ECHOES)
def test_a_key_that_is_echoed_is_found_nowhere(name, transport, quiet, canary):
    item, kind, requests = ECHOES[name]
    with ChatServer([item], repeat_last=True) as server:
        with pytest.raises(AnalystFailed) as caught:
            transport(server).complete(WITH_TOOLS)
        assert server.requests[0].headers["authorization"] == f"Bearer {canary}"
        assert len(server.requests) == requests
    error = caught.value
    assert type(error) is kind
    shown = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert canary not in shown
    assert canary[-12:] not in shown
    assert error.__context__ is None
