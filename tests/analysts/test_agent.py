"""The language model as an agent: it looks, drafts, argues from what was measured, and is held to it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from chat_server import Answer, Calls, ChatServer, Hang, Status

from planner.analysts import read_transcript
from planner.plan import read_plan

UP = "model.layers.2.mlp.up_proj.weight"
STATISTICS = ("tensor_statistics", {"tensors": [UP]})
NO_TOOLS = Status(400, {"error": {"message": "registry.ollama.ai/library/test does not support tools"}})
NO_SCHEMA = Status(400, {"error": {"message": "This response_format type is unavailable now"}})


@pytest.fixture
def ask(planner, tiny_model, tmp_path):
    """Propose with a scripted server; the server and the result of the command."""

    def run(*script, options=(), goal=("--goal", "fewer mistakes")):
        with ChatServer(script) as server:
            given = [*goal, "--llm", "test-model", "--base-url", server.base_url]
            result = planner("propose", tiny_model, *given, "--out", tmp_path / "plan.json", *options)
        return server, result

    return run


def bodies(server):
    return [request.body for request in server.requests]


def test_it_looks_before_it_answers_and_what_it_saw_is_in_the_question_for_the_plan(
    ask, answer, tmp_path, tiny_profile
):
    server, result = ask(Calls([STATISTICS], text="let me see"), Answer("I am ready."), Answer(answer()))
    assert result.status == 0, result.err
    first, second, third = bodies(server)
    assert {"tensor_statistics", "check_plan", "preview_modification"} <= {
        t["function"]["name"] for t in first["tools"]
    }
    assert "response_format" not in first, "many endpoints take tools or a format, not both"
    told = second["messages"][-1]
    assert told["role"] == "tool"
    assert told["tool_call_id"] == second["messages"][-2]["tool_calls"][0]["id"]
    std = f"{tiny_profile.by_name[UP].std:.6g}"
    assert std in told["content"], "the exact statistic"
    assert "tools" not in third
    assert third["response_format"]["json_schema"]["strict"] is True
    assert [message["role"] for message in third["messages"]] == ["system", "user"]
    assert std in third["messages"][1]["content"]
    assert "let me see" in third["messages"][1]["content"]
    plan = read_plan((tmp_path / "plan.json").read_text())
    assert (plan.analyst.requests, plan.analyst.tool_calls, plan.analyst.rounds) == (3, 1, 1)
    assert plan.analyst.first_answer_valid is True
    assert plan.analyst.transcripts == ("plan.transcript.json",)


def test_every_step_is_shown_as_it_happens(ask, answer):
    _, result = ask(Calls([STATISTICS, ("no_such_tool", {})]), Answer(answer()))
    assert "step 1: 7," in result.err
    assert f'tensor_statistics {{"tensors": ["{UP}"]}} -> ' in result.err
    assert "no_such_tool {} -> " in result.err
    assert "(refused)" in result.err


def test_broken_arguments_and_unknown_tools_are_told_to_the_model_and_end_nothing(ask, answer, tmp_path):
    bad = Calls([("tensor_statistics", '{"tensors": ['), ("histogram", {"tensor": "nothing.like.it"})])
    server, result = ask(bad, Answer(answer()))
    assert result.status == 0, result.err
    told = [m["content"] for m in bodies(server)[1]["messages"] if m["role"] == "tool"]
    assert "JSON" in told[0]
    assert "no tensor" in told[1]
    called = read_transcript(tmp_path / "plan.transcript.json").exchanges[0].called
    assert [one.ok for one in called] == [False, False]


def test_without_tool_calls_of_its_own_it_calls_them_as_json(ask, answer, tmp_path):
    wanted = json.dumps({"calls": [{"tool": "tensor_statistics", "arguments": json.dumps({"tensors": [UP]})}]})
    server, result = ask(NO_TOOLS, Answer(wanted), Answer('{"calls": []}'), Answer(answer()))
    assert result.status == 0, result.err
    assert "tools are called as JSON instead" in result.err
    second = bodies(server)[1]
    assert "tools" not in second
    assert "tensor_statistics" in second["messages"][1]["content"], "described in words"
    assert "kurtosis" in bodies(server)[2]["messages"][-1]["content"], "the result, as a message"
    plan = read_plan((tmp_path / "plan.json").read_text())
    assert plan.analyst.tool_calls == 1


def test_an_endpoint_without_tool_calls_is_remembered(planner, tiny_model, tmp_path, answer):
    with ChatServer(
        [NO_TOOLS, Answer('{"calls": []}'), Answer(answer()), Answer('{"calls": []}'), Answer(answer())]
    ) as server:
        for name in ("a.json", "b.json"):
            given = ["--goal", f"goal of {name}", "--llm", "m", "--base-url", server.base_url, "--out", tmp_path / name]
            assert planner("propose", tiny_model, *given).status == 0
    assert ["tools" in body for body in bodies(server)] == [True, False, False, False, False]


def test_the_ladder_of_formats_is_climbed_down_and_remembered(planner, tiny_model, tmp_path, answer):
    with ChatServer([NO_SCHEMA, Answer(answer()), Answer(answer())]) as server:
        for name in ("a.json", "b.json"):
            given = ["--goal", f"goal of {name}", "--llm", "m", "--base-url", server.base_url, "--no-tools"]
            assert planner("propose", tiny_model, *given, "--out", tmp_path / name).status == 0
    kinds = [body["response_format"]["type"] for body in bodies(server)]
    assert kinds == ["json_schema", "json_object", "json_object"]


def test_one_shot_without_tools(ask, answer):
    server, result = ask(Answer(answer()), options=["--no-tools"])
    assert result.status == 0, result.err
    assert len(server.requests) == 1
    assert "tools" not in bodies(server)[0]


def test_the_steps_are_limited_and_the_plan_is_asked_for_after_them(ask, answer):
    server, result = ask(Calls([STATISTICS]), Calls([STATISTICS]), Answer(answer()), options=["--max-steps", "2"])
    assert result.status == 0, result.err
    assert ["tools" in body for body in bodies(server)] == [True, True, False]


def test_the_tokens_are_limited(ask, answer, tmp_path):
    busy = Calls([STATISTICS], usage={"prompt_tokens": 30_000, "completion_tokens": 100})
    server, result = ask(busy, Answer(answer()), options=["--max-tokens", "52000"])
    assert result.status == 0, result.err
    assert "no more looking: 30,100 of 52,000 tokens are used" in result.err
    used_up = Answer("no plan", usage={"prompt_tokens": 30_000, "completion_tokens": 100})
    server, result = ask(used_up, options=["--max-tokens", "40000", "--no-tools", "--out", tmp_path / "b.json"])
    assert result.status == 6
    assert "error[limit-reached]" in result.err
    assert len(server.requests) == 1, "nothing is sent beyond a limit"
    assert (tmp_path / "b.transcript.json").exists()


def test_a_limit_in_dollars_needs_a_price(ask, answer, tmp_path):
    _, result = ask(options=["--max-cost", "0.1"])
    assert result.status == 2
    assert "--price IN,OUT" in result.err
    _, result = ask(Answer(answer()), options=["--max-cost", "0.5", "--price", "2.5,10", "--no-tools"])
    assert result.status == 0, result.err
    plan = read_plan((tmp_path / "plan.json").read_text())
    assert plan.analyst.usage.cost_usd == pytest.approx((11 * 2.5 + 7 * 10) / 1e6)
    _, result = ask(options=["--max-cost", "0.001", "--price", "2.5,10", "--no-tools", "--out", tmp_path / "b.json"])
    assert result.status == 6
    assert "US dollars" in result.err


def test_an_invariant_modification_goes_back_with_its_proof(ask, answer, tmp_path):
    q = answer(target={"roles": ["q_proj"], "layers": "1"})
    server, result = ask(Answer(q), Answer(answer()), options=["--no-tools"])
    assert result.status == 0, result.err
    repair = bodies(server)[1]["messages"][-1]["content"]
    assert "m01: its effect is invariant" in repair
    _, result = ask(Answer(q), options=["--no-tools", "--repairs", "0", "--out", tmp_path / "b.json"])
    assert result.status == 6


def test_what_the_users_own_policy_allows_is_not_refused(ask, answer, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('refuse = ["void"]\n')
    q = answer(target={"roles": ["q_proj"], "layers": "1"})
    _, result = ask(Answer(q), options=["--no-tools", "--policy", policy])
    assert result.status == 0, result.err


def test_a_modification_that_cites_nothing_goes_back_and_is_marked_if_it_stays(
    ask, answer, tmp_path, planner, tiny_model
):
    bare = answer(evidence=[])
    server, result = ask(Answer(bare), Answer(bare), options=["--no-tools", "--repairs", "1"])
    assert result.status == 0, result.err
    assert "m01: it cites no measured fact" in bodies(server)[1]["messages"][-1]["content"]
    plan = read_plan((tmp_path / "plan.json").read_text())
    assert plan.ungrounded == ("m01",)
    assert plan.analyst.first_answer_valid is False
    assert "UNGROUNDED" in result.out
    checked = planner("check", tmp_path / "plan.json", "--model", tiny_model)
    assert "ungrounded, they cite no measured fact: m01" in checked.out


def test_a_grounded_answer_is_never_lost_to_a_worse_one(ask, answer, tmp_path):
    """The first only lacks a citation; what comes after it cannot be used at all."""
    _, result = ask(Answer(answer(evidence=[])), Answer("no"), options=["--no-tools", "--repairs", "1"])
    assert result.status == 0, result.err
    assert read_plan((tmp_path / "plan.json").read_text()).ungrounded == ("m01",)


def two(answer, **second):
    document = json.loads(answer())
    document["modifications"].append(document["modifications"][0] | {"id": "m02"} | second)
    return json.dumps(document)


WRONG = {
    "malformed": {"confidence": 7},
    "unknown": {"target": {"tensors": ["model.layers.9.mlp.up_proj.weight"]}},
    "mismatch": {"evidence": [{"tensor": UP, "fact": "std", "value": 7.0}]},
    "invariant": {"target": {"roles": ["q_proj"], "layers": "0"}},
}


@pytest.mark.parametrize("second", WRONG.values(), ids=WRONG)
def test_the_valid_part_is_kept_only_if_asked_for(ask, answer, tmp_path, second):
    script = [Answer(two(answer, **second))] * 2
    _, result = ask(*script, options=["--no-tools", "--repairs", "1"])
    assert result.status == 6
    assert "m02" in result.err
    assert not (tmp_path / "plan.json").exists()
    _, result = ask(*script, options=["--no-tools", "--repairs", "1", "--partial"])
    assert result.status == 0, result.err
    plan = read_plan((tmp_path / "plan.json").read_text())
    assert [modification.id for modification in plan.modifications] == ["m01"]
    assert plan.note.startswith("partial: 1 modification of the answer could not be used (m02)")
    assert "left out: m02: " in result.err


def test_all_problems_go_back_in_one_message(ask, answer):
    document = json.loads(two(answer, **WRONG["malformed"]))
    document["modifications"] += [
        document["modifications"][0] | {"id": f"n{number}"} | wrong
        for number, wrong in enumerate(list(WRONG.values())[1:])
    ]
    server, result = ask(Answer(json.dumps(document)), Answer(answer()), options=["--no-tools"])
    assert result.status == 0, result.err
    repair = bodies(server)[1]["messages"][-1]["content"]
    for words in (
        "confidence",
        "no tensor matches",
        "nearest: model.layers",
        "it cites std = 7.0",
        "its effect is invariant",
    ):
        assert words in repair


def test_a_replay_makes_the_same_plan_without_a_server(ask, answer, planner, tiny_model, tmp_path):
    script = [Calls([STATISTICS]), Answer("thinking"), Answer(answer(confidence=7)), Answer(answer())]
    _, result = ask(*script, options=["--seed", "7", "--temperature", "0.5", "--max-steps", "3"])
    assert result.status == 0, result.err
    again = planner(
        "propose", tiny_model, "--replay", tmp_path / "plan.transcript.json", "--out", tmp_path / "again.json"
    )
    assert again.status == 0, again.err
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    record = read_plan((tmp_path / "again.json").read_text()).analyst
    assert (record.seed, record.temperature, record.rounds) == (7, 0.5, 2)


def test_a_replay_over_an_endpoint_without_tools(ask, answer, planner, tiny_model, tmp_path):
    _, result = ask(NO_TOOLS, Answer('{"calls": []}'), Answer(answer()))
    assert result.status == 0, result.err
    again = planner(
        "propose", tiny_model, "--replay", tmp_path / "plan.transcript.json", "--out", tmp_path / "again.json"
    )
    assert again.status == 0, again.err
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_a_failure_is_replayed_as_the_failure_it_was(ask, planner, tiny_model, tmp_path):
    _, result = ask(Answer("no"), Status(401, {"error": {"message": "who are you"}}), options=["--no-tools"])
    assert result.status == 6
    again = planner(
        "propose", tiny_model, "--replay", tmp_path / "plan.transcript.json", "--out", tmp_path / "again.json"
    )
    assert again.status == 6
    assert "error[endpoint-refused]" in again.err


def test_a_replay_against_something_else_is_refused(ask, answer, planner, tiny_model, tmp_path):
    ask(Answer(answer()), options=["--no-tools"])
    policy = tmp_path / "policy.toml"
    policy.write_text("most_modifications = 3\n")
    given = ["--replay", tmp_path / "plan.transcript.json", "--out", tmp_path / "again.json"]
    again = planner("propose", tiny_model, *given, "--policy", policy)
    assert again.status == 2
    assert "error[transcript-unusable]" in again.err
    assert "what differs: the policy" in again.err
    assert not (tmp_path / "again.json").exists()
    (tmp_path / "old.json").write_text('{"schema": "planner/transcript@1"}')
    old = planner("propose", tiny_model, "--replay", tmp_path / "old.json", "--out", tmp_path / "again.json")
    assert old.status == 2
    assert "older planner" in old.err


def test_the_same_question_is_asked_once(planner, tiny_model, tmp_path, answer):
    with ChatServer([Answer(answer()), Answer(answer(confidence=0.7))]) as server:
        given = ["--goal", "g", "--llm", "m", "--base-url", server.base_url, "--no-tools"]
        for name, more in (("a", []), ("b", []), ("c", ["--no-cache"])):
            result = planner("propose", tiny_model, *given, "--out", tmp_path / f"{name}.json", *more)
            assert result.status == 0, result.err
    plans = [read_plan((tmp_path / f"{name}.json").read_text()) for name in "abc"]
    assert [plan.modifications[0].confidence for plan in plans] == [0.4, 0.4, 0.7]
    assert [plan.analyst.usage.input_tokens for plan in plans] == [11, 0, 11], "what is kept costs nothing"


def test_several_samples_are_merged_with_their_agreement(ask, answer, tmp_path):
    other = answer(target={"tensors": ["model.layers.1.mlp.up_proj.weight"]}, evidence=[])
    script = [Answer(answer()), Answer(answer(confidence=0.8)), Answer(other)]
    server, result = ask(*script, options=["--no-tools", "--samples", "3", "--repairs", "0"])
    assert result.status == 0, result.err
    plan = read_plan((tmp_path / "plan.json").read_text())
    counts = sorted(len(agreement.by) for agreement in plan.agreement.values())
    assert counts == [1, 2]
    assert {agreement.of for agreement in plan.agreement.values()} == {3}
    assert plan.analyst.transcripts == ("plan.transcript.json", "plan.transcript-2.json", "plan.transcript-3.json")
    assert "proposed by 2 of 3" in result.out
    assert len(server.requests) == 3, "each sample is asked for, though the question is the same"


def test_one_of_several_may_fail(ask, answer, tmp_path):
    script = [Answer("no"), Answer(answer())]
    _, result = ask(*script, options=["--no-tools", "--samples", "2", "--repairs", "0"])
    assert result.status == 0, result.err
    plan = read_plan((tmp_path / "plan.json").read_text())
    assert any("gave no plan" in sentence for sentence in plan.disagreements)
    _, result = ask(
        *[Answer("no")] * 2, options=["--no-tools", "--samples", "2", "--repairs", "0", "--out", tmp_path / "b.json"]
    )
    assert result.status == 6


def test_a_merged_plan_is_replayed_from_all_its_transcripts(ask, answer, planner, tiny_model, tmp_path):
    other = answer(operation={"kind": "scale", "factor": 1.07})
    _, result = ask(Answer(answer()), Answer(other), options=["--no-tools", "--samples", "2"])
    assert result.status == 0, result.err
    replays = [
        part for name in ("plan.transcript", "plan.transcript-2") for part in ("--replay", tmp_path / f"{name}.json")
    ]
    again = planner("propose", tiny_model, *replays, "--out", tmp_path / "again.json")
    assert again.status == 0, again.err
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replay", "t.json", "--llm", "x", "--goal", "g"], "--replay asks nobody"),
        ([], "--goal is missing"),
        (["--goal", "g", "--analyst", "random"], "`random` and `like` go together"),
        (["--goal", "g", "--price", "3", "--llm", "m"], "--price 3 is not two numbers"),
        (["--goal", "g", "--llm", "m", "--tune", "s.toml", "--evidence", "e.json"], "--tune is for the rules"),
    ],
)
def test_options_that_do_not_fit_together(planner, tiny_model, tmp_path, options, words):
    result = planner("propose", tiny_model, *options, "--out", tmp_path / "plan.json")
    assert result.status == 2
    assert words in result.err
    assert list(Path(tmp_path).glob("*.json")) == []


def test_a_dry_run_shows_the_first_question_and_sends_nothing(ask, tmp_path):
    server, result = ask(options=["--dry-run"])
    assert result.status == 0, result.err
    assert "# Goal\n\nfewer mistakes" in result.out
    assert "----- tool check_plan" in result.out
    assert "nothing was sent" in result.err
    assert server.requests == []
    assert not list(tmp_path.glob("*.json"))


def test_what_is_shown_is_what_is_sent(ask, answer):
    shown, result = ask(options=["--dry-run", "--json"])
    server, _ = ask(Answer(answer()))
    assert [m["content"] for m in result.json["messages"]] == [m["content"] for m in bodies(server)[0]["messages"]]
    assert shown.requests == []


def test_the_whole_plan_has_a_deadline(ask, tmp_path):
    began = time.monotonic()
    _, result = ask(Calls([STATISTICS]), Hang(), options=["--deadline", "4"])
    assert time.monotonic() - began < 15
    assert result.status == 6
    assert "error[limit-reached]: 4 seconds for the whole plan are over" in result.err
    assert "--deadline" in result.err
    transcript = read_transcript(tmp_path / "plan.transcript.json")
    assert transcript.outcome == "limit-reached"
    assert [exchange.failed is None for exchange in transcript.exchanges] == [True, False]


def test_the_random_control_is_as_strong_as_the_plan_it_is_like(ask, answer, planner, tiny_model, tmp_path):
    ask(Answer(answer()), options=["--no-tools"])
    given = ["--analyst", "random", "--like", tmp_path / "plan.json", "--goal", "g", "--seed", "3"]
    for name in ("a.json", "b.json"):
        result = planner("propose", tiny_model, *given, "--out", tmp_path / name)
        assert result.status == 0, result.err
    control, again = (read_plan((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert control.modifications == again.modifications, "by its seed"
    assert control.analyst.kind == "random"
    assert control.analyst.seed == 3
    assert control.modifications[0].target.tensors != (UP,)
    strengths = []
    for name in ("plan.json", "a.json"):
        checked = planner("check", tmp_path / name, "--model", tiny_model, "--json").json
        strengths.append(checked["modifications"][0]["tensors"][0]["relative_change"])
    assert strengths[0] == pytest.approx(strengths[1], rel=0.1)


def test_ctrl_c_keeps_what_was_said(ask, answer, tmp_path, monkeypatch):
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.analysts.llm.judged", pressed)
    _, result = ask(Answer(answer()), options=["--no-tools"])
    assert result.status == 130
    transcript = read_transcript(tmp_path / "plan.transcript.json")
    assert transcript.outcome == "interrupted"
    assert transcript.exchanges[0].reply is not None
    assert not (tmp_path / "plan.json").exists()


def test_too_many_calls_at_once_are_answered_in_part(ask, answer, tmp_path):
    server, result = ask(Calls([STATISTICS] * 10), Answer(answer()))
    assert result.status == 0, result.err
    told = [m["content"] for m in bodies(server)[1]["messages"] if m["role"] == "tool"]
    assert len(told) == 10, "every call has its result"
    assert [text.startswith("not called") for text in told] == [False] * 8 + [True] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "cannot be read"),
        ('{"calls": 3}', "no list `calls`"),
        ('{"calls": [{"name": "x"}]}', "names no tool"),
    ],
)
def test_calls_that_cannot_be_read_are_told_to_the_model(ask, answer, text, words):
    server, result = ask(NO_TOOLS, Answer(text), Answer('{"calls": []}'), Answer(answer()))
    assert result.status == 0, result.err
    assert words in bodies(server)[2]["messages"][-1]["content"]


def test_a_plan_in_the_place_of_calls_is_taken(ask, answer):
    server, result = ask(NO_TOOLS, Answer(answer()))
    assert result.status == 0, result.err
    assert len(server.requests) == 2


def test_answers_that_led_nowhere_are_not_given_again(planner, tiny_model, tmp_path, answer):
    with ChatServer([Answer("no"), Answer(answer())]) as server:
        given = ["--goal", "g", "--llm", "m", "--base-url", server.base_url, "--no-tools", "--repairs", "0"]
        assert planner("propose", tiny_model, *given, "--out", tmp_path / "a.json").status == 6
        assert planner("propose", tiny_model, *given, "--out", tmp_path / "a.json").status == 0


def test_a_conversation_that_broke_off_goes_on_where_it_was(planner, tiny_model, tmp_path, answer):
    """The endpoint died after the second step: what it had said is not asked for, nor paid for, again."""
    with ChatServer([Calls([STATISTICS]), Status(401, {"error": {"message": "gone"}}), Answer(answer())]) as server:
        given = ["--goal", "g", "--llm", "m", "--base-url", server.base_url]
        assert planner("propose", tiny_model, *given, "--out", tmp_path / "a.json").status == 6
        again = planner("propose", tiny_model, *given, "--out", tmp_path / "a.json")
    assert again.status == 0, again.err
    assert len(server.requests) == 3
