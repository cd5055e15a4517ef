"""`planner propose` before a server that fails in every way: a valid plan, or one typed error, and no key anywhere."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from chat_server import (
    Answer,
    BigHeaders,
    Bomb,
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

from planner.llm import Backoff, LiteLLMClient
from planner.plan import read_plan

KEY = "sk-canary/Zq+7&x=YW5vdGhlcg"
OTHER = "canary-of-another-account-7f3a"
LOOK = ("list_tensors", {"most": 3})
GOOD = json.dumps(
    {
        "note": "one careful step",
        "modifications": [
            {
                "id": "m01",
                "target": {"tensors": ["model.layers.2.mlp.up_proj.weight"]},
                "operation": {"kind": "scale", "factor": 1.05},
                "reasoning": "a test",
                "confidence": 0.4,
                "expected_impact": "a lower loss",
                "evidence": [],
            }
        ],
    }
)
FINE = Answer(GOOD)


def echo(received):
    """A 401 that repeats what it was sent, as providers do."""
    sent = received.headers["authorization"]
    return Status(401, {"error": {"message": f"bad key {sent}, {sent.split()[1]}; {OTHER}"}}, {"X-Echo": sent})


def echoing_answer(received):
    """A plan that repeats the key wherever a plan takes text."""
    sent = received.headers["authorization"].split()[1]
    document = json.loads(GOOD)
    document["note"] = f"{sent} {OTHER}"
    document["modifications"][0]["reasoning"] = f"Bearer {sent} {OTHER}"
    return Answer(json.dumps(document), model=f"m-{sent}-{OTHER}")


def echoing_calls(received):
    """Tool calls that repeat it."""
    sent = received.headers["authorization"].split()[1]
    return Calls([("list_tensors", {"pattern": f"{sent} {OTHER}"}), (f"list {sent}", {})], text=sent)


def told(code, text, headers=None):
    return Status(code, {"error": {"message": text}}, headers or {})


@dataclass(frozen=True)
class Fault:
    """What the server does, the last thing for ever, and what has to come of it: an error's code, or a plan."""

    script: tuple[Item, ...]
    code: str | None
    options: tuple[str, ...] = ("--no-tools",)


def fault(*script: Item, code: str | None, tools: bool = False, options: tuple[str, ...] = ()) -> Fault:
    return Fault(script, code, options if tools else ("--no-tools", *options))


REFUSED, UNREACHABLE, UNUSABLE = "endpoint-refused", "endpoint-unreachable", "answer-unusable"
FAULTS = {
    # statuses
    "429 with a short wait": fault(told(429, "slow", {"Retry-After": "0"}), FINE, code=None),
    "429 for ever": fault(told(429, "slow"), code=REFUSED),
    "429 with a long wait": fault(told(429, "slow", {"Retry-After": "3600"}), code=REFUSED),
    "500 with a page": fault(Status(500, "<html>\x1b[31m<h1>Oops"), code=REFUSED),
    "503, then well": fault(told(503, "overloaded"), FINE, code=None),
    "401 that echoes": fault(echo, code=REFUSED),
    "403": fault(told(403, "not for you"), code=REFUSED),
    "404": fault(told(404, "no such model"), code=REFUSED),
    "400 context": fault(told(400, "maximum context length is 4096 tokens"), code=REFUSED),
    "redirect": fault(Redirect(302, "http://127.0.0.1:9/v1"), code=REFUSED),
    "redirect with the method": fault(Redirect(307, "http://127.0.0.1:9/v1"), code=REFUSED),
    # bodies that are no completion
    "HTML with 200": fault(Raw(b"<html>Sign in", "text/html"), code=REFUSED),
    "nothing": fault(Raw(b""), code=REFUSED),
    "events": fault(Raw(b"data: {}\n\n", "text/event-stream"), code=REFUSED),
    "an error with 200": fault(Json({"error": {"message": "upstream"}}), code=REFUSED),
    "no choices": fault(Json({"choices": []}), code=REFUSED),
    "choices null": fault(Json({"choices": None}), code=REFUSED),
    "gzip bomb": fault(Bomb(2**26), code=REFUSED),
    "deflate bomb behind a 500": fault(Bomb(2**26, "deflate", 500), code=REFUSED),
    "endless": fault(Endless(), code=REFUSED),
    # bodies that end wrongly, or never
    "cut": fault(Cut(), code=UNREACHABLE),
    "cut without a length": fault(Cut(length=False), code=REFUSED),
    "cut, then well": fault(Cut(), FINE, code=None),
    "chunks cut": fault(ChunkedCut(), code=UNREACHABLE),
    "a length too long": fault(Lie(20), code=UNREACHABLE),
    "dropped": fault(Drop(), code=UNREACHABLE),
    "huge headers": fault(BigHeaders(), code=UNREACHABLE),
    "hanging": fault(Hang(), code=UNREACHABLE, options=("--timeout", "1")),
    "trickling": fault(Trickle(), code=UNREACHABLE, options=("--timeout", "1")),
    "dripping": fault(Drip(), code=UNREACHABLE, options=("--timeout", "1")),
    # completions without usable text
    "content null": fault(Answer(None), code=UNUSABLE),
    "only reasoning": fault(Answer(None, reasoning="hmm"), code=UNUSABLE),
    "length": fault(Answer(GOOD[:100], finish_reason="length"), code=UNUSABLE),
    "length while looking": fault(Answer("hm", finish_reason="length"), code=UNUSABLE, tools=True),
    "filtered": fault(Answer("x", finish_reason="content_filter"), code=UNUSABLE),
    "refused": fault(Answer(None, refusal=f"I will not, {OTHER}"), code=UNUSABLE),
    "calls nobody offered": fault(Calls([LOOK]), code=UNUSABLE),
    "no plan": fault(Answer("I'd rather not."), code="no-valid-plan"),
    "a key twice": fault(Answer('{"note": "a", "note": "b", "modifications": []}'), code="no-valid-plan"),
    "half, then well": fault(Answer(GOOD[:-1]), FINE, code=None),
    # tool calls
    "a call without a name": fault(Calls([(None, {})]), code=UNUSABLE, tools=True),
    "no tools here": fault(told(400, "m does not support tools"), Answer('{"calls": []}'), FINE, code=None, tools=True),
    "ids twice": fault(Calls([LOOK, LOOK], ids=["a", "a"]), FINE, code=None, tools=True),
    "ids empty": fault(Calls([LOOK, LOOK], ids=["", None]), FINE, code=None, tools=True),
    "broken arguments": fault(Calls([("list_tensors", '{"most": ')]), FINE, code=None, tools=True),
    "arguments as objects": fault(Calls([LOOK], as_objects=True), FINE, code=None, tools=True),
    "an unknown tool": fault(Calls([("rm", {"-rf": "/"}), LOOK]), FINE, code=None, tools=True),
    "calls that end as stop": fault(Calls([LOOK], finish_reason="stop"), FINE, code=None, tools=True),
    "calls that echo": fault(echoing_calls, FINE, code=None, tools=True),
    "looks, then an error": fault(Calls([LOOK]), told(401, "who are you"), code=REFUSED, tools=True),
    # odd, and whole all the same
    "no format": fault(told(400, "This response_format type is unavailable now"), FINE, code=None),
    "usage missing": fault(Answer(GOOD, usage=None), code=None),
    "usage odd": fault(Answer(GOOD, usage={"prompt_tokens": "7", "completion_tokens": -1}), code=None),
    "no reason": fault(Answer(GOOD, finish_reason=None), code=None),
    "parts": fault(Answer([{"type": "text", "text": GOOD[:50]}, {"type": "text", "text": GOOD[50:]}]), code=None),
    "fenced": fault(Answer(f"Here it is:\n```json\n{GOOD}\n```"), code=None),
    "an answer that echoes": fault(echoing_answer, code=None),
}


@pytest.fixture
def keys(monkeypatch):
    """A key for the endpoint, one of somebody else beside it, and no long waits between tries."""
    monkeypatch.setenv("PLANNER_API_KEY", KEY)
    monkeypatch.setenv("SOME_OTHER_TOKEN", OTHER)
    monkeypatch.setattr("planner.llm.openai_compatible.Backoff", lambda: Backoff(base_s=0.001, cap_s=0.002))


def leaked(text: str) -> list[str]:
    return [secret for secret in (KEY, KEY[-12:], OTHER) if secret in text or json.dumps(secret)[1:-1] in text]


def files_below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_plan_or_a_typed_error(name, planner, tiny_model, tmp_path, keys):
    told_or_planned(FAULTS[name], planner, tiny_model, tmp_path)


@pytest.mark.skipif(find_spec("litellm") is None, reason="litellm is not installed")
# litellm ignores this warning of its own types itself, but pytest resets the filters for each test.
@pytest.mark.filterwarnings("ignore:.*is using the `ReadOnly` qualifier:UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        *("401 that echoes", "429 with a short wait", "cut", "no choices", "length", "refused", "gzip bomb"),
        *("ids twice", "broken arguments", "an unknown tool", "calls that echo", "an answer that echoes"),
    ],
)
def test_the_same_through_litellm(name, planner, tiny_model, tmp_path, keys, monkeypatch):
    """The command goes through litellm to no address of ours, so its client is put in the place of the other one."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def client_for(model, *, base_url, timeout_s, environment):
        fast = Backoff(base_s=0.001, cap_s=0.002)
        return LiteLLMClient(
            f"openai/{model}", base_url=base_url, timeout_s=timeout_s, environment=environment, backoff=fast
        )

    monkeypatch.setattr("planner.analysts.panel.client_for", client_for)
    told_or_planned(FAULTS[name], planner, tiny_model, tmp_path)


def told_or_planned(wanted, planner, tiny_model, tmp_path):
    """Run the command against the fault, and look at everything it leaves."""
    plan, transcript = tmp_path / "out" / "plan.json", tmp_path / "out" / "plan.transcript.json"
    plan.parent.mkdir()
    with ChatServer(wanted.script, repeat_last=True) as server:
        given = ["--goal", "fewer mistakes", "--llm", "m", "--base-url", server.base_url, "--repairs", "1"]
        result = planner("propose", tiny_model, *given, "--out", plan, *wanted.options)
        sent = len(server.requests)
    shown = result.out + result.err
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "Traceback" not in shown
    if wanted.code is None:
        assert result.status == 0, result.err
        assert [one.id for one in read_plan(plan.read_text()).modifications] == ["m01"]
        assert planner("check", plan, "--model", tiny_model).status == 0
    else:
        assert result.status == 6, shown
        assert f"error[{wanted.code}]" in result.err
        assert len([line for line in result.err.splitlines() if line.startswith("hint: ")]) == 1
        assert not plan.exists()
    assert sent
    assert transcript.exists(), "something was sent"
    assert not list(plan.parent.glob(".*")), "no leftovers"
    assert leaked(shown) == []
    for path in files_below(plan.parent, Path(os.environ["PLANNER_CACHE"]), Path(os.environ["PLANNER_STATE"])):
        assert leaked(path.read_bytes().decode(errors="replace")) == [], path


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--base-url", "http://127.0.0.1:1/v1", "--timeout", "2"), "endpoint-unreachable"),
        (("--base-url", f"http://user:{OTHER}@127.0.0.1:1/v1"), "usage"),
        (("--base-url", "ftp://127.0.0.1/v1"), "usage"),
        (("--base-url", "http://example.invalid/v1"), "network-forbidden"),
    ],
)
def test_an_endpoint_that_cannot_be_asked(options, code, planner, tiny_model, tmp_path, keys):
    result = planner("propose", tiny_model, "--goal", "g", "--llm", "m", "--out", tmp_path / "plan.json", *options)
    assert result.status == (2 if code == "usage" else 6)
    assert f"error[{code}]" in result.err
    assert "\nhint: " in result.err
    assert leaked(result.out + result.err) == []
    assert not (tmp_path / "plan.json").exists()
