import logging
import os
import signal
import threading
import time
import traceback

import openai.resources.chat  # noqa: F401 - imported before any test looks at the clock
import pytest
from chat_server import Answer, ChatServer, Cut, Drop, Hang, Json, Raw, Status, Trickle

from planner.errors import AnalystFailed, AnswerUnusable, EndpointRefused, EndpointUnreachable
from planner.llm import Backoff, Message, OpenAICompatibleClient, Request
from planner.llm.connections import http_library

ASK = Request(messages=(Message(role="system", content="be brief"), Message(role="user", content="grüße")))
FAST = Backoff(base_s=0.001, cap_s=0.002)
BUSY = Status(503, {"error": {"message": "overloaded"}})


def client(server, *, timeout_s=20.0, model="org/model", environment=None, backoff=FAST):
    return OpenAICompatibleClient(
        model, base_url=server.base_url, timeout_s=timeout_s, environment=environment or {}, backoff=backoff
    )


def failure(*script, ask=ASK, models=("model-a", "model-b"), **options):
    """The error that the script causes, and how many requests were made."""
    with ChatServer(script, models=models) as server:
        with pytest.raises(AnalystFailed) as caught:
            client(server, **options).complete(ask)
        count = len(server.requests)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert error.message
    assert error.hint
    assert f"(after {count} attempt" in error.message
    return error, count


def test_an_answer():
    with ChatServer([Answer("hallo", model="served-model")]) as server:
        reply = client(server).complete(ASK)
    assert (reply.text, reply.model, reply.finish_reason, reply.attempts) == ("hallo", "served-model", "stop", 1)
    assert reply.usage.model_dump() == {"input_tokens": 11, "output_tokens": 7, "cost_usd": None}
    assert server.requests[0].body == {
        "model": "org/model",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "grüße"}],
        "max_tokens": 8192,
    }


def test_temperature_is_sent_only_when_given():
    with ChatServer([Answer("a")]) as server:
        client(server).complete(ASK.model_copy(update={"temperature": 0.0, "max_output_tokens": 5}))
    assert server.requests[0].body["temperature"] == 0.0
    assert server.requests[0].body["max_tokens"] == 5


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        (None, "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("https://notopenai.com/v1", "max_tokens"),
    ],
)
def test_openai_itself_knows_the_limit_under_its_newer_name(base_url, name):
    made = OpenAICompatibleClient("m", base_url=base_url, timeout_s=1, environment={"OPENAI_API_KEY": "k" * 9})
    assert made._body(ASK)[name] == 8192


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({}, "Bearer none"),
        ({"OPENAI_API_KEY": "key-a"}, "Bearer key-a"),
        ({"OPENAI_API_KEY": "key-a", "PLANNER_API_KEY": "key-b\n"}, "Bearer key-b"),
        ({"OPENAI_API_KEY": "key-a", "PLANNER_API_KEY": ""}, "Bearer key-a"),
    ],
)
def test_which_key_is_sent(environment, sent):
    with ChatServer([Answer("a")]) as server:
        client(server, environment=environment).complete(ASK)
    assert server.requests[0].headers["authorization"] == sent


def test_a_proxy_is_not_used_for_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with ChatServer([Answer("a"), Status(404)]) as server:
        assert client(server).complete(ASK).text == "a"
        with pytest.raises(EndpointRefused) as caught:
            client(server).complete(ASK)
    assert "model-a" in caught.value.hint


@pytest.mark.parametrize("item", [*(Status(code) for code in (408, 409, 429, 500, 502, 503, 599)), Drop(), Cut()])
def test_what_can_pass_by_itself_is_retried(item):
    with ChatServer([item, item, Answer("at last")]) as server:
        reply = client(server).complete(ASK)
    assert (reply.text, reply.attempts, len(server.requests)) == ("at last", 3, 3)


def test_a_body_cut_short_without_a_declared_length_is_retried():
    with ChatServer([Cut(length=False), Answer("whole")]) as server:
        assert client(server).complete(ASK).attempts == 2
    error, count = failure(*[Cut(length=False)] * 4)
    assert "cut short" in error.message
    assert count == 4


def test_four_attempts_and_no_more():
    error, count = failure(*[BUSY] * 4)
    assert isinstance(error, EndpointRefused)
    assert count == 4
    assert error.message == "the endpoint answered 503: overloaded (after 4 attempts)"
    error, count = failure(*[Drop()] * 4)
    assert isinstance(error, EndpointUnreachable)
    assert count == 4


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 405, 413, 418, 422])
def test_what_cannot_pass_is_not_retried(code):
    error, count = failure(Status(code, {"error": {"message": "no such luck"}}))
    assert isinstance(error, EndpointRefused)
    assert count == 1
    assert f"answered {code}: no such luck (after 1 attempt)" in error.message


def test_an_account_without_credit_is_not_retried():
    error, count = failure(Status(429, {"error": {"message": "quota", "code": "insufficient_quota"}}))
    assert count == 1
    assert "credit" in error.hint


def test_retry_after_is_honoured():
    with ChatServer([Status(429, "slow down", {"Retry-After": "1"}), Answer("a")]) as server:
        assert client(server).complete(ASK).attempts == 2
    assert server.requests[1].at - server.requests[0].at >= 1


@pytest.mark.parametrize(("seconds", "timeout_s"), [("3600", 9000.0), ("30", 20.0)])
def test_a_long_retry_after_fails_at_once_and_says_when(seconds, timeout_s):
    began = time.monotonic()
    error, count = failure(Status(429, "slow down", {"Retry-After": seconds}), timeout_s=timeout_s)
    assert count == 1
    assert time.monotonic() - began < 15
    assert f"({seconds} s from now)" in error.hint
    assert "UTC" in error.hint


@pytest.mark.parametrize("item", [Hang(), Trickle()])
def test_a_hang_ends_at_the_deadline_by_the_clock_on_the_wall(item):
    began = time.monotonic()
    error, _ = failure(item, timeout_s=0.7)
    assert isinstance(error, EndpointUnreachable)
    assert 0.6 < time.monotonic() - began < 2
    assert error.message == "no complete answer within 0.7 s (after 1 attempt)"


def test_the_deadline_spans_the_attempts():
    began = time.monotonic()
    error, count = failure(BUSY, Hang(), timeout_s=1.0)
    assert isinstance(error, EndpointUnreachable)
    assert count == 2
    assert time.monotonic() - began < 2.5


def test_nobody_listens():
    with ChatServer([]) as server:
        closed = server.base_url
    made = OpenAICompatibleClient("m", base_url=closed, timeout_s=9, environment={}, backoff=FAST)
    with pytest.raises(EndpointUnreachable, match=r"no answer from http://127.*refused.*after 4 attempts") as caught:
        made.complete(ASK)
    assert caught.value.__context__ is None


def test_a_connect_timeout_is_retried(monkeypatch):
    library = http_library()
    calls = []

    def slow(self, request):
        calls.append(request)
        raise library.ConnectTimeout("timed out")

    monkeypatch.setattr(library.HTTPTransport, "handle_request", slow)
    made = OpenAICompatibleClient("m", base_url="http://127.0.0.1:9", timeout_s=9, environment={}, backoff=FAST)
    with pytest.raises(EndpointUnreachable, match="timed out"):
        made.complete(ASK)
    assert len(calls) == 4
    assert calls[0].extensions["timeout"]["connect"] <= 9


USELESS = [
    (Answer("half a pl", finish_reason="length"), "cut off", "--max-output-tokens"),
    (Answer(None, finish_reason="length"), "cut off", "--max-output-tokens"),
    (Answer("half", finish_reason="max_tokens"), "cut off", "--max-output-tokens"),
    (Answer("some", finish_reason="content_filter"), "refused", "rephrase"),
    (Answer(None, refusal="I can't help with that"), "refused to answer: I can't help with that", "rephrase"),
    (Answer("text", refusal="no"), "refused", "rephrase"),
    (Answer(None), "no text", "--max-output-tokens"),
    (Answer(""), "no text", "--max-output-tokens"),
    (Answer(" \n"), "no text", "--max-output-tokens"),
    (Answer(None, finish_reason=None), "no text", "--max-output-tokens"),
    (Answer("", finish_reason=""), "no text", "--max-output-tokens"),
    (Answer("call", finish_reason="tool_calls"), "'tool_calls'", "another model"),
    (Answer("text", finish_reason="error"), "'error'", "another model"),
    (Json({"choices": [{"finish_reason": 3, "message": {"content": "text"}}]}), "'3'", "another model"),
    (Json({"choices": [{"finish_reason": "stop", "message": {"content": ["text"]}}]}), "no text", "another model"),
]


@pytest.mark.parametrize(("item", "message", "hint"), USELESS, ids=lambda value: str(value)[:50])
def test_answers_without_usable_text(item, message, hint):
    error, count = failure(item)
    assert isinstance(error, AnswerUnusable)
    assert message in error.message
    assert hint in error.hint
    assert count == 1


NO_COMPLETION = [
    (Json({"choices": None}), "without choices"),
    (Json({"choices": []}), "without choices"),
    (Json({"choices": {}}), "without choices"),
    (Json({"choices": [None]}), "without choices"),
    (Json({}), "without choices"),
    (Json({"choices": [{"finish_reason": "stop"}]}), "without a message"),
    (Json([1]), "a JSON list"),
    (Json("text"), "a JSON str"),
    (Json({"error": {"message": "upstream failed", "code": 502}}), "200 with an error: upstream failed"),
    (Json({"error": "as text"}), "200 with an error: as text"),
    (Json({"error": {"code": 7}, "choices": []}), "200 with an error: {'code': 7}"),
    (Raw(b"<html>\x1b[2J<body>Sign in", "text/html"), r"not JSON (line 1, column 1: Expecting value): <html>\x1b[2J<"),
    (Raw(b"<html>", "application/json"), "not JSON"),
    (Raw(b""), "not JSON"),
    (Raw(b'{"a": 1, "a": 2}'), "stands twice"),
    (Raw(b"\xff\xfe"), "not JSON"),
    (Raw(b"data: {}\n\n", "text/event-stream"), "not JSON"),
]


@pytest.mark.parametrize(("item", "message"), NO_COMPLETION, ids=lambda value: str(value)[:50])
def test_what_is_no_chat_completion(item, message):
    error, count = failure(item)
    assert isinstance(error, EndpointRefused)
    assert message in error.message
    assert error.message.isprintable()
    assert count == 1


def test_only_the_first_200_characters_of_a_page_are_shown():
    error, _ = failure(Raw(b"<p>" + b"x" * 500, "text/html"))
    assert "<p>" + "x" * 197 + " (after" in error.message
    error, _ = failure(*[Status(500, "y" * 500)] * 4)
    assert error.message == f"the endpoint answered 500: {'y' * 200} (after 4 attempts)"


@pytest.mark.parametrize("reason", [None, ""])
def test_a_text_without_a_finish_reason_is_taken(reason):
    with ChatServer([Answer("whole", finish_reason=reason)]) as server:
        reply = client(server).complete(ASK)
    assert (reply.text, reply.finish_reason) == ("whole", "")


def test_a_sloppy_but_whole_answer_is_taken():
    value = {"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "many", "completion_tokens": -1}}
    with ChatServer([Json(value), Json({**value, "usage": None}), Answer("b", usage=None)]) as server:
        first, second, third = (client(server).complete(ASK) for _ in range(3))
    assert first.model == second.model == "org/model"
    assert {(reply.usage.input_tokens, reply.usage.output_tokens) for reply in (first, second, third)} == {(0, 0)}


def test_json_under_a_wrong_type_or_with_a_byte_order_mark_is_read():
    body = b'\xef\xbb\xbf{"choices": [{"message": {"content": "a"}}]}'
    with ChatServer([Raw(body, "text/plain")]) as server:
        assert client(server).complete(ASK).text == "a"


def test_an_unknown_model_lists_the_known_ones(canary):
    names = [f"model-{index}" for index in range(7)]
    with ChatServer([Status(404, {"error": {"message": "no such model"}})], models=names) as server:
        with pytest.raises(EndpointRefused) as caught:
            client(server, environment={"OPENAI_API_KEY": canary}).complete(ASK)
        assert server.model_requests[0].headers["authorization"] == f"Bearer {canary}"
    assert (
        caught.value.hint == "the endpoint knows these models: model-0, model-1, model-2, model-3, model-4 and 2 more"
    )


@pytest.mark.parametrize(
    "models",
    [
        (),
        Hang(),
        Drop(),
        Raw(b"<html>"),
        Status(500, "x"),
        Json([]),
        Json({"data": None}),
        Json({"data": [None, {"id": 3}]}),
    ],
    ids=str,
)
def test_a_model_list_that_fails_is_no_matter(models, monkeypatch):
    monkeypatch.setattr("planner.llm.openai_compatible._MODEL_LIST_S", 0.3)
    error, _ = failure(Status(404, "no such model"), models=models)
    assert "answered 404: no such model" in error.message
    assert "check the model's name" in error.hint


def test_listed_names_are_redacted_and_printable(canary):
    listed = ["evil\x1b[2J", f"m-{canary}", "l" * 500]
    error, _ = failure(Status(404), models=listed, environment={"OPENAI_API_KEY": canary})
    assert error.hint == rf"the endpoint knows these models: evil\x1b[2J, m-[redacted], {'l' * 80}"


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (Status(401), "PLANNER_API_KEY or OPENAI_API_KEY is set"),
        (Status(400, {"error": {"message": "maximum context length is 4096 tokens"}}), "too long for this model"),
        (Status(413, "prompt too large"), "too long for this model"),
        (Status(400, {"detail": [{"msg": "bad"}]}), "its message says why"),
        (Status(307, headers={"Location": "http://elsewhere.example/v1"}), "points to http://elsewhere.example/v1"),
        (Status(302), "points to nowhere"),
    ],
    ids=str,
)
def test_hints_of_statuses(status, hint):
    error, count = failure(status)
    assert hint in error.hint
    assert count == 1


def test_a_refused_key_is_named_by_its_variable():
    assert "check OPENAI_API_KEY:" in failure(Status(401), environment={"OPENAI_API_KEY": "k" * 9})[0].hint


def echo(code, *, header=False):
    """Answers with everything that came in, as real providers and proxies do."""

    def item(request):
        key = request.headers["authorization"]
        headers = {"X-Echo": key, "Location": f"http://127.0.0.1/?key={key}"} if header else {}
        return Status(code, {"error": {"message": f"{key.split()[1]} is wrong; got {key}", "seen": key}}, headers)

    return item


ECHOES = [
    [echo(401)],
    [echo(400)],
    [echo(403, header=True)],
    [echo(404)],
    [echo(307, header=True)],
    [echo(500, header=True)] * 4,
    [lambda request: Status(401, "x" * 190 + request.headers["authorization"])],
    [lambda request: Json({"error": request.headers["authorization"]})],
    [lambda request: Raw(f"<p>{request.headers['authorization']}".encode(), "text/html")],
    [lambda request: Answer(None, refusal=request.headers["authorization"])],
    [lambda request: Answer("text", finish_reason=request.headers["authorization"].split()[1])],
    [Cut()] * 4,
    [Drop()] * 4,
    [Hang()],
]


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "PLANNER_API_KEY"])
@pytest.mark.parametrize("script", ECHOES, ids=range(len(ECHOES)))
@pytest.mark.parametrize("key", ["the canary", "another-Shape-0123456789"])
def test_the_key_is_found_nowhere(script, variable, key, canary, monkeypatch, caplog, capfd):
    key = canary if key == "the canary" else key
    for logger in (None, "httpx", "httpx2", "httpcore", "httpcore2", "openai"):
        caplog.set_level(logging.DEBUG, logger=logger)
    environment = {variable: key}
    with ChatServer(script) as server:
        made = client(server, environment=environment, timeout_s=0.8 if isinstance(script[0], Hang) else 20.0)
        with pytest.raises(AnalystFailed) as caught:
            made.complete(ASK)
        assert server.requests[0].headers["authorization"] == f"Bearer {key}"
    error = caught.value
    frames = traceback.TracebackException.from_exception(error, capture_locals=True)
    # The frames of this test know the key; those of the package must not.
    ours = "".join(str(frame.locals) for frame in frames.stack if "/planner/" in frame.filename)
    assert ours
    out, err = capfd.readouterr()
    seen = [
        str(error),
        repr(error),
        error.hint,
        repr(vars(error)),
        "".join(traceback.format_exception(error)),
        ours,
        repr(made),
        caplog.text,
        "".join(repr(vars(record)) for record in caplog.records),
        out,
        err,
    ]
    tail = key[-12:]
    assert caplog.records, "nothing was logged, so nothing was tested"
    assert [text for text in seen if key in text or tail in text] == []


def test_the_key_is_not_in_the_model_name_of_a_reply(canary):
    with ChatServer([lambda request: Answer("a", model=request.headers["authorization"])]) as server:
        reply = client(server, environment={"OPENAI_API_KEY": canary}).complete(ASK)
    assert reply.model == "Bearer [redacted]"


@pytest.mark.parametrize(
    ("key", "shown"), [("n", "n in none"), ("none", "none in none"), ("12345", "[redacted] in none")]
)
def test_a_short_key_of_a_local_server_does_not_spoil_messages(key, shown):
    error, _ = failure(Status(400, f"{key} in none"), environment={"PLANNER_API_KEY": key})
    assert f": {shown} (after" in error.message


@pytest.mark.parametrize("script", [[Hang()], [Status(429, headers={"Retry-After": "50"})]], ids=["hang", "waiting"])
def test_ctrl_c_passes_at_once(script):
    with ChatServer(script) as server:
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        began = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client(server, timeout_s=60).complete(ASK)
        assert time.monotonic() - began < 2
        timer.join()
        assert len(server.requests) == 1
