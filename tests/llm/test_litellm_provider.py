"""litellm takes seconds to import, so these tests are few."""

import importlib.util
import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, Cut, Drop, Endless, Hang, Json, Raw, Redirect, Status

from planner.errors import (
    AnalystFailed,
    AnswerUnusable,
    EndpointRefused,
    EndpointUnreachable,
    FeatureRefused,
    KeyMissing,
    NetworkForbidden,
    UsageError,
)
from planner.llm import Backoff, LiteLLMClient, Message, Request, Tool

NEEDS_LITELLM = pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="litellm is not installed")
# litellm ignores this warning of its own types itself, but pytest resets the filters for each test.
pytestmark = [
    NEEDS_LITELLM,
    pytest.mark.filterwarnings("ignore:.*is using the `ReadOnly` qualifier:UserWarning"),
]

ASK = Request(messages=(Message(role="user", content="hi"),), max_output_tokens=50)
FAST = Backoff(base_s=0.001, cap_s=0.002)
BUSY = Status(503, {"error": {"message": "overloaded"}})


@pytest.fixture(autouse=True)
def key(monkeypatch, canary):
    monkeypatch.setenv("OPENAI_API_KEY", canary)
    return canary


def client(server, *, model="openai/gpt-4o-mini", timeout_s=20.0, backoff=FAST):
    return LiteLLMClient(model, base_url=server.base_url, timeout_s=timeout_s, environment=os.environ, backoff=backoff)


def failure(*script, ask=ASK, **options):
    with ChatServer(script) as server:
        with pytest.raises(AnalystFailed) as caught:
            client(server, **options).complete(ask)
        count = len(server.requests)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    return error, count


def test_an_answer_with_its_price(key):
    with ChatServer([Answer("hello", model="gpt-4o-mini")]) as server:
        made = client(server)
        reply = made.complete(ASK.model_copy(update={"temperature": 0.5}))
    assert made.name == "openai/gpt-4o-mini"
    assert (reply.text, reply.model, reply.finish_reason, reply.attempts) == ("hello", "gpt-4o-mini", "stop", 1)
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (11, 7)
    assert 0 < reply.usage.cost_usd < 0.001
    assert server.requests[0].headers["authorization"] == f"Bearer {key}"
    assert server.requests[0].body == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 50,
        "temperature": 0.5,
    }


def test_an_unknown_price_is_null():
    with ChatServer([Answer("hello", model="nobody-knows")]) as server:
        reply = client(server, model="openai/nobody-knows").complete(ASK)
    assert reply.usage.cost_usd is None
    assert "temperature" not in server.requests[0].body


@pytest.mark.parametrize("item", [Status(429, "slow", {"Retry-After": "0"}), BUSY, Cut()], ids=["429", "503", "cut"])
def test_there_is_one_retry_layer(item):
    with ChatServer([item, Answer("a")]) as server:
        assert client(server).complete(ASK).attempts == 2
    assert failure(*[item] * 4)[1] == 4


def test_kinds_of_failures():
    assert isinstance(failure(*[Cut()] * 4)[0], EndpointUnreachable)
    for item in (Status(400, "no"), Status(422, "no"), Status(404, "no"), Json({"choices": []})):
        error, count = failure(item)
        assert isinstance(error, EndpointRefused), item
        assert count == 1, item
    for item in (Answer(None), Answer("x", finish_reason="length"), Answer(None, refusal="I will not")):
        error, count = failure(item)
        assert isinstance(error, AnswerUnusable), item
        assert count == 1, item
    assert "I will not" in error.message
    for item in (Raw(b"<html>hello", "text/html"), Json({"choices": None}), Json({"error": {"message": "bad"}})):
        assert isinstance(failure(*[item] * 4)[0], EndpointRefused), item


def test_a_long_retry_after_fails_at_once():
    error, count = failure(Status(429, "slow", {"Retry-After": "3600"}))
    assert count == 1
    assert "(3600 s from now)" in error.hint


def test_a_hang_ends_at_the_deadline():
    error, _ = failure(Hang(), timeout_s=0.7)
    assert isinstance(error, EndpointUnreachable)
    assert "within 0.7 s" in error.message


CLAUDE = {
    "id": "msg",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 4},
}
USE = [{"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}}]
OTHER_FORMS = [
    (Redirect(307, "http://127.0.0.1:9/"), EndpointRefused, "answered 307", 1),
    (Endless(), EndpointRefused, "larger than 16 MiB", 1),
    (Raw(b"<html>"), EndpointRefused, "litellm cannot read", 1),
    (Json({"x": 1}), EndpointRefused, "litellm cannot read", 1),
    (Json({**CLAUDE, "content": []}), AnswerUnusable, "no text", 1),
    (Status(400, {"error": {"message": "no tools here"}}), FeatureRefused, "answered 400: no tools here", 1),
    (BUSY, EndpointRefused, "answered 503: overloaded", 4),
    (Drop(), EndpointUnreachable, "disconnected", 4),
]


def test_a_provider_with_a_form_of_its_own_goes_through_the_same_door(monkeypatch, capfd):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k" * 20)
    look = Tool(name="look", description="Looks.", parameters={"type": "object", "properties": {}})
    script = [Json(CLAUDE), Json({**CLAUDE, "content": USE, "stop_reason": "tool_use"})]
    script += [item for item, _, _, requests in OTHER_FORMS for _ in range(requests)]
    with ChatServer(script, path="/v1/messages") as server:
        made = LiteLLMClient(
            "anthropic/claude-sonnet-4-5",
            base_url=server.base_url.removesuffix("/v1"),
            timeout_s=20,
            environment=os.environ,
            backoff=FAST,
        )
        # A seed is a wish; this provider knows none, and litellm would refuse the request.
        reply = made.complete(ASK.model_copy(update={"seed": 3}))
        assert (reply.text, reply.usage.input_tokens, reply.usage.output_tokens) == ("hello", 3, 4)
        reply = made.complete(ASK.model_copy(update={"tools": (look,)}))
        assert [(call.id, call.name, call.arguments) for call in reply.tool_calls] == [("t1", "look", '{"a": 1}')]
        assert server.connections == 1
        for item, kind, says, requests in OTHER_FORMS:
            before = len(server.requests)
            with pytest.raises(AnalystFailed, match=says) as caught:
                made.complete(ASK.model_copy(update={"tools": (look,)}))
            assert (type(caught.value), len(server.requests) - before) == (kind, requests), item
            assert "Traceback" not in caught.value.message
        made.close()
    assert capfd.readouterr() == ("", "")


def echo(code):
    def item(request):
        key = request.headers["authorization"]
        return Status(code, {"error": {"message": f"{key.split()[1]} is wrong; got {key}"}}, {"X-Echo": key})

    return item


@pytest.mark.parametrize("code", [401, 400, 500])
def test_the_key_is_found_nowhere_and_nothing_is_printed(code, key, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    error, _ = failure(*[echo(code)] * (4 if code == 500 else 1))
    assert isinstance(error, EndpointRefused)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    texts = [str(error), repr(error), error.hint, "".join(traceback.format_exception(error)), caplog.text]
    texts += [repr(vars(record)) for record in caplog.records]
    assert [text for text in texts if key in text or key[-12:] in text] == []


def online():
    return {"PLANNER_OFFLINE": "0"}


def test_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(KeyMissing, match="no API key for anthropic/some-model") as caught:
        LiteLLMClient("anthropic/some-model", timeout_s=9, environment=online(), backoff=FAST).complete(ASK)
    assert "ANTHROPIC_API_KEY" in caught.value.hint
    with pytest.raises(KeyMissing) as caught:
        LiteLLMClient("gemini/some-model", timeout_s=9, environment=online(), backoff=FAST).complete(ASK)
    assert "GEMINI_API_KEY" in caught.value.hint
    with ChatServer([Status(401, "who are you")]) as server, pytest.raises(KeyMissing, match="after 1 attempt"):
        client(server, model="groq/some-model").complete(ASK)


def test_offline_and_unknown_providers():
    with pytest.raises(NetworkForbidden, match="the provider of anthropic/x"):
        LiteLLMClient("anthropic/x", timeout_s=1, environment=os.environ)
    with pytest.raises(UsageError, match="Qwen/Qwen3-8B") as caught:
        LiteLLMClient("Qwen/Qwen3-8B", timeout_s=1, environment=online())
    assert "--base-url" in caught.value.hint


def test_an_exception_of_any_class_is_a_failure(monkeypatch, key):
    made = LiteLLMClient("openai/x", timeout_s=9, environment=online(), backoff=FAST)

    def broken(**given):
        raise KeyError(f"candidates of {key}")

    monkeypatch.setattr(made._litellm, "completion", broken)
    with pytest.raises(EndpointRefused, match=r"litellm failed with KeyError: 'candidates of \[redacted\]'") as caught:
        made.complete(ASK)
    assert caught.value.__context__ is None


CHILD = """
import os, socket, sys
from planner.llm import LiteLLMClient, Message, Request
strangers = []
watched = ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, args: strangers.append(args) if event in watched else None)
client = LiteLLMClient("openai/gpt-4o-mini", base_url=sys.argv[1], timeout_s=60, environment=os.environ)
request = Request(messages=(Message(role="user", content="hi"),))
assert client.complete(request).text == "a"
try:
    client.complete(request)
except Exception:
    pass
assert "ANTHROPIC_API_KEY" not in os.environ, "read from .env"
hosts = {args[1][0] if isinstance(args[0], socket.socket) else args[0] for args in strangers}
assert hosts == {"127.0.0.1"}, hosts
"""


def test_a_process_of_its_own_is_silent_calls_nobody_else_and_reads_no_dotenv_file(tmp_path):
    (tmp_path / ".env").write_text("ANTHROPIC_API_KEY=from-the-file\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with ChatServer([Answer("a"), Status(400, "no")]) as server:
        command = [sys.executable, "-c", CHILD, server.base_url]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
