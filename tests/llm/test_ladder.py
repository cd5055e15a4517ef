import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_server import Answer, Calls, ChatServer, Status

from planner.errors import EndpointRefused, EndpointUnreachable, FeatureRefused
from planner.llm import AnswerShape, Ladder, Message, Reply, Request, ScriptedClient, Tool, Usage

SHAPED = Request(
    messages=(Message(role="user", content="hi"),), shape=AnswerShape(name="plan", json_schema={"type": "object"})
)
LOOK = Tool(name="look", description="Looks.", parameters={"type": "object", "properties": {}})
FREE = SHAPED.model_copy(update={"shape": None})
WITH_TOOLS = FREE.model_copy(update={"tools": (LOOK,)})
RUNGS = ("json_schema", "json_object", "tool", "text")
DAY_S = 86_400


class Endpoint:
    """A client that knows some rungs, and tools or not; `asked` holds the rungs."""

    name = "m"

    def __init__(self, *known, tools=True):
        self.known = known
        self.tools = tools
        self.asked = []

    def complete(self, request, *, within_s=None):
        self.asked.append(request.rung)
        if request.tools and not self.tools:
            raise FeatureRefused("no tools", hint="h", feature="tools")
        if request.shape and request.rung not in self.known:
            raise FeatureRefused(f"no {request.rung}", hint="h", feature=request.rung)
        usage = Usage(input_tokens=1, output_tokens=1, cost_usd=None)
        return Reply(text="{}", model="m", finish_reason="stop", usage=usage, attempts=1, rung=request.rung)

    def close(self):
        self.asked.append("closed")


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "endpoints.json"


def asked(endpoint, memory, request=SHAPED, *, address="http://127.0.0.1/v1"):
    """The rungs that a new ladder asks for."""
    before = len(endpoint.asked)
    Ladder(endpoint, memory=memory, endpoint=address).complete(request)
    return tuple(endpoint.asked[before:])


@pytest.mark.parametrize("at", range(4))
def test_one_rung_down_at_each_refusal_and_straight_there_the_next_time(at, memory):
    endpoint = Endpoint(*RUNGS[at:])
    assert asked(endpoint, memory) == RUNGS[: at + 1]
    assert asked(endpoint, memory) == (RUNGS[at],)
    assert Ladder(endpoint, memory=memory, endpoint="http://127.0.0.1/v1").complete(SHAPED).rung == RUNGS[at]


def test_what_is_known_holds_for_one_endpoint_and_model(memory):
    endpoint = Endpoint("text")
    asked(endpoint, memory)
    assert asked(endpoint, memory, address="http://127.0.0.1:1/v1") == RUNGS
    endpoint.name = "another"
    assert asked(endpoint, memory) == RUNGS
    assert len(json.loads(memory.read_text())) == 3


def test_without_a_file_it_is_known_as_long_as_the_ladder_lives():
    endpoint = Endpoint("tool")
    ladder = Ladder(endpoint, memory=None, endpoint="e")
    ladder.complete(SHAPED)
    ladder.complete(SHAPED)
    assert endpoint.asked == ["json_schema", "json_object", "tool", "tool"]
    assert ladder.name == "m"
    ladder.close()
    assert endpoint.asked[-1] == "closed"


def test_a_rung_that_stopped_working_leads_further_down(memory):
    endpoint = Endpoint("json_object", "text")
    asked(endpoint, memory)
    endpoint.known = ("text",)
    assert asked(endpoint, memory) == ("json_object", "tool", "text")
    assert asked(endpoint, memory) == ("text",)


def test_the_rung_is_the_ladders_choice_and_free_text_is_asked_once(memory):
    endpoint = Endpoint("json_object")
    assert asked(endpoint, memory, SHAPED.model_copy(update={"rung": "text"})) == ("json_schema", "json_object")
    assert asked(endpoint, memory, FREE) == ("text",)
    assert asked(endpoint, memory) == ("json_object",)


def test_if_nothing_works_the_first_error_is_raised(memory):
    endpoint = Endpoint()
    with pytest.raises(FeatureRefused, match="no json_schema") as caught:
        Ladder(endpoint, memory=memory, endpoint="e").complete(SHAPED)
    assert caught.value.feature == "json_schema"
    assert tuple(endpoint.asked) == RUNGS
    assert not memory.exists()


@pytest.mark.parametrize("kind", [EndpointRefused, EndpointUnreachable, KeyboardInterrupt])
def test_other_errors_pass_at_once(kind, memory):
    failure = KeyboardInterrupt() if kind is KeyboardInterrupt else kind("no", hint="h")
    ladder = Ladder(ScriptedClient([]), memory=memory, endpoint="e")
    ladder._client.complete = lambda request, within_s=None: (_ for _ in ()).throw(failure)
    with pytest.raises(kind) as caught:
        ladder.complete(SHAPED)
    assert caught.value is failure


def test_whether_tools_are_known(memory):
    def known():
        return Ladder(endpoint, memory=memory, endpoint="e").native_tools

    endpoint = Endpoint(*RUNGS)
    assert known() is None
    ladder = Ladder(endpoint, memory=memory, endpoint="e")
    ladder.complete(FREE)
    assert (ladder.native_tools, known()) == (None, None)
    ladder.complete(WITH_TOOLS)
    assert (ladder.native_tools, known()) == (True, True)
    endpoint.tools = False
    with pytest.raises(FeatureRefused, match="no tools"):
        ladder.complete(WITH_TOOLS.model_copy(update={"shape": SHAPED.shape}))
    assert (ladder.native_tools, known()) == (False, False)


def test_a_kept_answer_teaches_nothing(memory):
    usage = Usage(input_tokens=1, output_tokens=1, cost_usd=None)
    kept = Reply(text="{}", model="m", finish_reason="stop", usage=usage, attempts=1, cached=True)
    ladder = Ladder(ScriptedClient([kept]), memory=memory, endpoint="e")
    ladder.complete(WITH_TOOLS)
    assert ladder.native_tools is None


def test_after_30_days_it_starts_at_the_top_again(memory, monkeypatch):
    endpoint = Endpoint("text")
    asked(endpoint, memory)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 29 * DAY_S)
    assert asked(endpoint, memory) == ("text",)
    monkeypatch.setattr("time.time", lambda: now + 31 * DAY_S)
    assert asked(endpoint, memory) == RUNGS
    assert asked(endpoint, memory) == ("text",)


ENTRY = {"rung": "text", "tools": None, "at": int(time.time())}
KEY = "http://127.0.0.1/v1 m"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"a": {"at": 1}, "a": 2}',
        json.dumps({KEY: None}).encode(),
        json.dumps({KEY: {**ENTRY, "rung": "ladder"}}).encode(),
        json.dumps({KEY: {**ENTRY, "rung": ["text"]}}).encode(),
        json.dumps({KEY: {**ENTRY, "tools": 1}}).encode(),
        json.dumps({KEY: {**ENTRY, "at": "now"}}).encode(),
        json.dumps({KEY: {**ENTRY, "at": 1e99}}).encode(),
        json.dumps({KEY: {**ENTRY, "at": int(time.time()) + 99 * DAY_S}}).encode(),
        b"[" * 100_000,
        b" " * 2**21,
    ],
    ids=lambda content: content[:60],
)
def test_a_broken_memory_costs_only_time(content, memory):
    memory.parent.mkdir()
    memory.write_bytes(content)
    endpoint = Endpoint("json_object")
    assert asked(endpoint, memory) == ("json_schema", "json_object")
    assert asked(endpoint, memory) == ("json_object",)


def test_a_whole_memory_is_read(memory):
    memory.parent.mkdir()
    memory.write_text(json.dumps({KEY: ENTRY}))
    assert asked(Endpoint("text"), memory) == ("text",)


def test_a_memory_that_cannot_be_written_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    endpoint = Endpoint("json_object")
    memory = tmp_path / "file" / "endpoints.json"
    assert asked(endpoint, memory) == ("json_schema", "json_object")
    assert asked(endpoint, memory) == ("json_schema", "json_object")


def test_the_200_newest_entries_are_kept(memory):
    memory.parent.mkdir()
    now = int(time.time())
    memory.write_text(json.dumps({f"e{number} m": {**ENTRY, "at": now - number} for number in range(1, 300)}))
    asked(Endpoint("text"), memory)
    kept = json.loads(memory.read_text())
    assert len(kept) == 200
    assert {KEY, "e1 m", "e199 m"} <= set(kept)
    assert "e200 m" not in kept


def test_several_threads_may_learn_at_once(memory):
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda number: asked(Endpoint("text"), memory, address=f"e{number}"), range(16))
        assert set(found) == {RUNGS}
    assert len(json.loads(memory.read_text())) == 16


def test_the_time_spans_the_rungs():
    left = []

    class Slow(Endpoint):
        def complete(self, request, *, within_s=None):
            left.append(within_s)
            time.sleep(0.05)
            return super().complete(request)

    Ladder(Slow("tool"), memory=None, endpoint="e").complete(SHAPED, within_s=10.0)
    assert 10.0 >= left[0] > left[1] + 0.04 > left[2] + 0.08


def picky(received):
    """An endpoint that knows tools, but no response_format."""
    if "response_format" in received.body:
        return Status(400, {"error": {"message": "This response_format type is unavailable now"}})
    if "tools" in received.body:
        return Calls([("plan", {"a": 1})])
    return Answer("words")


def test_over_http(transport, memory, canary):
    with ChatServer([picky] * 4) as server:
        ladder = Ladder(transport(server), memory=memory, endpoint=server.base_url)
        replies = [ladder.complete(SHAPED), ladder.complete(SHAPED)]
    assert [(reply.rung, reply.text) for reply in replies] == [("tool", '{"a": 1}')] * 2
    assert len(server.requests) == 4
    assert server.connections == 1
    assert canary not in memory.read_text()
