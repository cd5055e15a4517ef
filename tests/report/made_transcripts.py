"""Conversations for the page: real ones, of the analyst with a model that says what it is told to; and hostile ones."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner.analysts import Asking, Brief, Limits, LLMAnalyst, Price, Transcript
from planner.analysts.transcript import CalledTool, Exchange, Failed
from planner.architecture import map_of
from planner.checkpoint import open_checkpoint
from planner.effects import check
from planner.errors import AnalystFailed
from planner.llm import AnswerShape, Message, Reply, Request, ScriptedClient, Tool, ToolCall, Usage
from planner.plan import Policy, Problem
from planner.profile import profile_checkpoint

__all__ = ["a_reply", "an_answer", "brief_of", "conversation", "hostile", "investigated"]

TENSOR = "model.layers.2.mlp.up_proj.weight"
STATISTICS = json.dumps({"tensors": [TENSOR]})


def brief_of(folder: Path) -> Brief:
    """What an analyst knows of a checkpoint, without histograms and evidence."""
    checkpoint, policy = open_checkpoint(folder), Policy()
    profile = profile_checkpoint(checkpoint)
    return Brief(
        goal="fewer mistakes\nand shorter sentences",
        profile=profile,
        policy=policy,
        check=lambda plan: check(plan, checkpoint, profile, policy),
        checkpoint=checkpoint,
        model=map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()}),
    )


def an_answer(brief: Brief, **changed: Any) -> str:
    """A good plan as a model writes it, with some fields of its one modification replaced."""
    std = brief.profile.by_name[TENSOR].std
    modification = {
        "id": "m01",
        "target": {"tensors": [TENSOR]},
        "operation": {"kind": "scale", "factor": 1.05},
        "reasoning": "its std is low",
        "confidence": 0.4,
        "expected_impact": "a lower loss",
        "evidence": [{"tensor": TENSOR, "fact": "std", "value": std}],
    }
    return json.dumps({"note": "one careful step", "modifications": [modification | changed]})


def a_reply(text: str, *calls: tuple[str, str], **fields: Any) -> Reply:
    """A reply that cost 1,000 tokens to read and 50 to write."""
    made = tuple(ToolCall(id=f"call-{n}", name=name, arguments=arguments) for n, (name, arguments) in enumerate(calls))
    usage = Usage(input_tokens=1000, output_tokens=50, cost_usd=None)
    given = {"model": "model-x-2026", "finish_reason": "tool_calls" if calls else "stop", "usage": usage, "attempts": 1}
    return Reply(text=text, tool_calls=made, **(given | fields))


def conversation(brief: Brief, script: Sequence[str | Reply | Exception], **asking: Any) -> Transcript:
    """What is written down when a model answers so."""
    analyst = LLMAnalyst(ScriptedClient(script, name="model-x"), Asking(**asking))
    with contextlib.suppress(AnalystFailed):
        analyst.propose(brief)
    assert analyst.transcript is not None
    return analyst.transcript


def investigated(brief: Brief) -> Transcript:
    """Three calls, one of them refused; an answer with problems; a repair; a plan."""
    return conversation(
        brief,
        [
            a_reply("First the statistics.", ("list_tensors", "{}"), ("tensor_statistics", STATISTICS)),
            a_reply("", ("tensor_statistics", '{"tensors": ["model.layers.2.mlp.up_prj.weight"]}'), attempts=2),
            a_reply("That is enough."),
            a_reply(an_answer(brief, confidence=7), rung="json_schema"),
            a_reply(an_answer(brief), rung="json_schema", cached=True),
        ],
        price=Price(input_usd=2, output_usd=10),
        limits=Limits(steps=6, cost_usd=0.5),
    )


def hostile(text: str) -> Transcript:
    """A conversation with `text` wherever there may be any."""
    call = ToolCall(id=text, name=text, arguments=text)
    messages = tuple(Message(role=role, content=text + role) for role in ("system", "user", "tool"))  # type: ignore[arg-type]
    spoken = (*messages, Message(role="assistant", content=text, tool_calls=(call,), tool_call_id=text))
    request = Request(
        messages=messages,
        tools=(Tool(name="look", description=text, parameters={text: text}),),
        shape=AnswerShape(name="plan", json_schema={text: [text]}),
    )
    usage = Usage(input_tokens=0, output_tokens=0, cost_usd=None)
    reply = Reply(text=text, tool_calls=(call,), model=text, finish_reason=text, usage=usage, attempts=1)
    called = tuple(CalledTool(name=text, arguments=text, result=text, ok=ok) for ok in (True, False))
    problem = Problem(modification=text, code=text, message=text, hint=text)
    failed = Failed(code=text, message=text, hint=text, feature=text)
    again = request.model_copy(update={"messages": spoken})
    return Transcript(
        model=text,
        prompt_sha256=text,
        goal=text,
        checkpoint=text,
        fingerprint=text,
        policy_sha256=text,
        evidence=text,
        asking=Asking(),
        tool_use="native",
        plan=text,
        created=text,
        record=text,
        outcome=text,
        exchanges=(
            Exchange(purpose="investigate", digest=text, request=request, reply=reply, called=called),
            Exchange(purpose="answer", digest=text, request=again, reply=reply, problems=(problem,)),
            Exchange(purpose="repair", digest=text, request=again, failed=failed),
        ),
    )
