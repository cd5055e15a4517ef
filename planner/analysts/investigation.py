"""Before it answers, the model looks at what it wants to see: tools, called natively or written as JSON.

What it found is handed to the question for the plan as plain text, not as tool messages: many endpoints take either
tools or a format for the answer, not both, and some take no tool message without tools.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from planner.analysts.aliases import quoted
from planner.analysts.answer import looks_like_json, sound_object
from planner.analysts.budget import Budget, request_tokens
from planner.analysts.prompts import render
from planner.analysts.settings import MOST_CALLS, Asking, ToolUse
from planner.analysts.tools import Bench, call, offered
from planner.analysts.tools.meanings import escaped
from planner.analysts.transcript import STEPS_LEFT, CalledTool, Recorder
from planner.errors import EndpointUnreachable, FeatureRefused, LimitReached
from planner.llm import AnswerShape, Message, Reply, Request, Tool, ToolCall
from planner.plain_text import plain
from planner.plan import Problem
from planner.strict_json import JsonRefused, loads

__all__ = ["Findings", "Investigation", "shortened"]

_LONGEST_THOUGHT = 1000
_LONGEST_HEARD = 1200
"""Characters of a call's arguments that the model is reminded of."""
_GROWTH = 6
"""The conversation may grow to this many times the first question's limit."""
_CALLS_SHAPE = AnswerShape(
    name="calls",
    json_schema={
        "type": "object",
        "properties": {
            "calls": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"tool": {"type": "string"}, "arguments": {"type": "string"}},
                    "required": ["tool", "arguments"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["calls"],
        "additionalProperties": False,
    },
)


@dataclass(frozen=True)
class Findings:
    """What came of looking."""

    looked_at: tuple[tuple[str, tuple[CalledTool, ...]], ...]
    """What the model said, and what it then called, step by step."""
    answer: str | None
    """Its last words, where it stopped calling tools by itself; they may be the plan already."""
    tool_use: ToolUse

    @property
    def calls(self) -> int:
        """How many tools were called."""
        return sum(len(called) for _, called in self.looked_at)

    def as_text(self) -> str:
        """For the question that asks for the plan."""
        last = _echoed(self.answer) if self.answer and not looks_like_json(self.answer) else ""
        if not self.looked_at and not last:
            return ""
        steps = [(_echoed(said), [_heard(one) for one in called]) for said, called in self.looked_at]
        return render("findings.md", steps=steps, last=last)


class Investigation:
    """One investigation; everything is recorded and paid for as it happens."""

    def __init__(
        self,
        recorder: Recorder,
        bench: Bench,
        budget: Budget,
        asking: Asking,
        *,
        context_tokens: int,
        tell: Callable[[str], None],
        clean: Callable[[str], str],
    ) -> None:
        self._recorder = recorder
        self._bench = bench
        self._budget = budget
        self._asking = asking
        self._most_tokens = _GROWTH * context_tokens
        self._tell = tell
        self._clean = clean
        self._looked_at: list[tuple[str, tuple[CalledTool, ...]]] = []

    def run(self, opening: tuple[Message, Message], look: str, tool_use: ToolUse) -> Findings:
        """Look until the model stops or a limit says so; `look` invites to it. Raises what the client raises."""
        system, task = opening
        invited = (system, Message(role="user", content=f"{task.content}\n{look}"))
        answer: str | None = None
        if tool_use == "native":
            try:
                answer = self._native(invited)
            except FeatureRefused as error:
                if error.feature != "tools":
                    raise
                self._tell("the endpoint has no tool calls; tools are called as JSON instead")
                tool_use = "protocol"
        if tool_use == "protocol":
            answer = self._protocol(invited)
        return Findings(tuple(self._looked_at), answer, tool_use)

    def _native(self, messages: tuple[Message, ...]) -> str | None:
        tools = offered(self._bench)
        for step in range(1, self._asking.limits.steps + 1):
            reply = self._asked(self._request(messages, tools=tools), step)
            if reply is None:
                return None
            if not reply.tool_calls:
                return reply.text
            results = _counted_down(self._called(reply.text, reply.tool_calls), step, self._asking.limits.steps)
            messages += (
                Message(role="assistant", content=reply.text, tool_calls=reply.tool_calls),
                *(Message(role="tool", content=text, tool_call_id=called) for called, text in results),
            )
        self._out_of_steps()
        return None

    def _protocol(self, opening: tuple[Message, Message]) -> str | None:
        system, task = opening
        tools = [tool.model_dump() for tool in offered(self._bench)]
        asked = task.content + "\n\n" + render("protocol.md", tools=tools, steps=self._asking.limits.steps)
        messages: tuple[Message, ...] = (system, Message(role="user", content=asked))
        for step in range(1, self._asking.limits.steps + 1):
            reply = self._asked(self._request(messages, shape=_CALLS_SHAPE), step)
            if reply is None:
                return None
            calls = _calls_in(reply.text)
            if calls is None:
                return reply.text
            if isinstance(calls, Problem):
                told = f"That cannot be read: {calls}"
            elif calls:
                told = "\n\n".join(f"{quoted(name)}:\n{text}" for name, text in self._called("", calls))
            else:
                return None
            messages += (Message(role="assistant", content=reply.text), Message(role="user", content=told))
        self._out_of_steps()
        return None

    def _request(
        self, messages: tuple[Message, ...], *, tools: tuple[Tool, ...] = (), shape: AnswerShape | None = None
    ) -> Request:
        asking = self._asking
        return Request(
            messages=messages,
            max_output_tokens=asking.max_output_tokens,
            temperature=asking.temperature,
            seed=asking.seed,
            sample=asking.sample,
            tools=tools,
            shape=shape,
        )

    def _asked(self, request: Request, step: int) -> Reply | None:
        """The reply; None where it is time to answer."""
        size = request_tokens(request)
        try:
            self._budget.require(request, and_answer=True)
        except LimitReached as error:
            self._stopped(error.message)
            return None
        if size > self._most_tokens:
            self._stopped(f"the conversation has grown to {size:,} tokens")
            return None
        self._tell(f"step {step}: {size:,} tokens")
        within = min(self._asking.timeout_s, self._budget.left_s)
        try:
            reply = self._recorder.ask(request, "investigate", within_s=within)
        except EndpointUnreachable as error:
            raise self._budget.blamed(error) from None
        self._budget.spend(request, reply)
        if reply.cached:
            self._tell("    answered from an earlier run (--no-cache asks anew)")
        return reply

    def _out_of_steps(self) -> None:
        self._stopped(f"{self._asking.limits.steps} steps are used")

    def _stopped(self, why: str) -> None:
        self._recorder.stop_looking(why)
        self._tell(f"no more looking: {why}")

    def _called(self, said: str, calls: tuple[ToolCall, ...]) -> list[tuple[str, str]]:
        """Every call with its result, by the call's id."""
        results: list[tuple[str, str]] = []
        notes: list[CalledTool] = []
        for place, wanted in enumerate(calls):
            if place < MOST_CALLS:
                found = call(wanted.name, wanted.arguments, self._bench)
                text, ok = self._clean(found.text), found.ok
            else:
                text, ok = f"not called: only {MOST_CALLS} calls of one step are answered", False
            results.append((wanted.id, text))
            notes.append(CalledTool(name=wanted.name, arguments=wanted.arguments, result=text, ok=ok))
            self._tell(f"    {shown(wanted)} -> {shortened(text)}" + ("" if ok else " (refused)"))
        self._recorder.amend(called=tuple(notes))
        self._looked_at.append((said, tuple(notes)))
        return results


def _counted_down(results: list[tuple[str, str]], step: int, steps: int) -> list[tuple[str, str]]:
    """The results, the last of which says how many steps are left."""
    *earlier, (called, text) = results
    left = str(steps - step) if step < steps else "none, the plan is asked for next"
    return [*earlier, (called, f"{text}{STEPS_LEFT}{left}]")]


def _echoed(said: str) -> str:
    """What a model said, fit to stand in a message of ours: it may repeat a stranger's text, headings and all."""
    return escaped(" ".join(said.split()), longest=_LONGEST_THOUGHT) if said.strip() else ""


def _heard(call: CalledTool) -> CalledTool:
    name = call.name if call.ok else quoted(call.name)
    return call.model_copy(update={"name": name, "arguments": _in_json(call.arguments)})


def _in_json(arguments: str) -> str:
    """The arguments as JSON in plain ASCII, in which no text can look like one of our lines."""
    try:
        written = json.dumps(loads(arguments))
    except JsonRefused:
        return escaped(arguments, longest=_LONGEST_HEARD)
    return written if len(written) <= _LONGEST_HEARD else f"{written[:_LONGEST_HEARD]}..."


def shown(call: ToolCall, *, longest: int = 100) -> str:
    """A call on one line, for people."""
    return shortened(f"{call.name} {call.arguments}", longest=longest)


def shortened(text: str, *, longest: int = 60) -> str:
    """The beginning of a text on one line."""
    line = " ".join(plain(" ".join(text.split()[:60])).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _calls_in(text: str) -> tuple[ToolCall, ...] | Problem | None:
    """The calls that a model wrote as JSON; None where it wrote its plan instead."""
    document = sound_object(text)
    if isinstance(document, Problem):
        return document
    if "modifications" in document:
        return None
    wanted = document.get("calls")
    if not isinstance(wanted, list):
        return _unread("there is no list `calls`")
    calls = []
    for place, item in enumerate(wanted, start=1):
        if not isinstance(item, dict) or not isinstance(item.get("tool"), str):
            return _unread(f"call {place} names no tool")
        arguments = item.get("arguments")
        given = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        calls.append(ToolCall(id=f"{place} {item['tool']}", name=item["tool"], arguments=given))
    return tuple(calls)


def _unread(message: str) -> Problem:
    return Problem(modification=None, code="plan-invalid", message=message, hint=_CALLS_HINT)


_CALLS_HINT = '{"calls": [{"tool": NAME, "arguments": JSON text}]}'
