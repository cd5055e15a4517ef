"""Answers that are kept: the same question is paid for once, and nothing in the folder can do harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from planner.errors import EndpointRefused
from planner.llm import KeptAnswers, Message, RedactingClient, Reply, Request, ScriptedClient, ToolCall, Usage

ASK = Request(messages=(Message(role="user", content="why?"),))
SECRET = "canary-0123456789"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_same_question_is_asked_once(tmp_path):
    inner = ScriptedClient(["one", "two"])
    client = KeptAnswers(inner, tmp_path, endpoint="e")
    first, again = client.complete(ASK), client.complete(ASK)
    assert (first.text, again.text) == ("one", "one")
    assert (first.cached, again.cached) == (False, True)
    assert client.complete(ASK.model_copy(update={"seed": 1})).text == "two"
    assert len(inner.requests) == 2


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"seed": 2}, {"sample": 1}, {"max_output_tokens": 9}])
def test_another_question_is_another_one(tmp_path, change):
    inner = ScriptedClient(["one", "two"])
    client = KeptAnswers(inner, tmp_path, endpoint="e")
    client.complete(ASK)
    assert client.complete(ASK.model_copy(update=change)).text == "two"


def test_so_is_another_model_and_another_endpoint(tmp_path):
    for endpoint, name in (("e", "m"), ("e", "n"), ("f", "m")):
        inner = ScriptedClient([f"{endpoint} {name}"], name=name)
        assert KeptAnswers(inner, tmp_path, endpoint=endpoint).complete(ASK).text == f"{endpoint} {name}"


def test_an_error_is_not_kept(tmp_path):
    inner = ScriptedClient([EndpointRefused("no", hint="h"), "yes"])
    client = KeptAnswers(inner, tmp_path, endpoint="e")
    with pytest.raises(EndpointRefused):
        client.complete(ASK)
    assert files(tmp_path) == []
    assert client.complete(ASK).text == "yes"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"text": 3}', b"\xff\xfe", b'{"text": "x", "surprise": 1}'])
def test_a_kept_answer_that_cannot_be_read_is_asked_for_again(tmp_path, content):
    client = KeptAnswers(ScriptedClient(["one", "two"]), tmp_path, endpoint="e")
    client.complete(ASK)
    (kept,) = files(tmp_path)
    assert kept.stat().st_mode & 0o777 == 0o600, "an answer is for nobody else"
    kept.write_bytes(content)
    assert client.complete(ASK).text == "two"


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    client = KeptAnswers(ScriptedClient(["one", "two"]), tmp_path / "file" / "folder", endpoint="e")
    assert [client.complete(ASK).text for _ in range(2)] == ["one", "two"]
    assert os.listdir(tmp_path) == ["file"]


def test_no_secret_comes_back(tmp_path):
    usage = Usage(input_tokens=1, output_tokens=1, cost_usd=None)
    call = ToolCall(id="1", name=f"tool_{SECRET}", arguments=f'{{"a": "{SECRET}"}}')
    echo = Reply(
        text=f"your key is {SECRET}",
        tool_calls=(call,),
        model=f"m-{SECRET}",
        finish_reason="stop",
        usage=usage,
        attempts=1,
    )
    client = KeptAnswers(RedactingClient(ScriptedClient([echo]), [SECRET]), tmp_path, endpoint="e")
    reply = client.complete(ASK)
    assert SECRET not in reply.model_dump_json()
    assert "[redacted]" in reply.text
    assert all(SECRET.encode() not in path.read_bytes() for path in files(tmp_path))


def test_what_stands_in_front_passes_on_what_it_is_asked(tmp_path):
    class Counting(ScriptedClient):
        native_tools = False
        closed = 0

        def close(self) -> None:
            self.closed += 1

    inner = Counting([], name="m")
    client = KeptAnswers(RedactingClient(inner, []), tmp_path, endpoint="e")
    assert (client.name, client.native_tools) == ("m", False)
    client.close()
    assert inner.closed == 1


def test_a_conversation_that_led_nowhere_is_forgotten_and_an_earlier_one_is_not(tmp_path):
    other = ASK.model_copy(update={"seed": 1})
    client = KeptAnswers(ScriptedClient(["one", "two", "three"]), tmp_path, endpoint="e")
    client.complete(ASK)
    client.begin()
    client.complete(other)
    client.forget()
    assert client.complete(ASK).cached
    assert client.complete(other).text == "three"
