"""What a transcript's page says of each request: what was new in it, what came back, what was wrong with that.

A request carries the whole conversation before it. Of every message the page shows only what no earlier step showed: a
message that was sent before is counted, the model's own words and a tool's result are pointed at, and of a message that
begins like an earlier one only the rest is shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from planner.report.transcript_text import Block, block, counted, json_block, line

if TYPE_CHECKING:
    from planner.analysts.transcript import CalledTool, Exchange, Transcript
    from planner.llm import Message, ToolCall

__all__ = ["Call", "Sent", "Step", "answers_of", "opening_of", "steps_of"]

_SHORTEST_BEGINNING = 200
"""Characters that two messages must share at their beginning before the page leaves them out."""
_MOST_NAMES = 6
_SHORT_ARGUMENTS = 120
_TITLES = {"investigate": "Looking", "answer": "Asking for the plan", "repair": "Asking for the plan again"}
_SPEAKERS = {
    "system": "System message",
    "user": "The planner's message",
    "assistant": "The model's part",
    "tool": "A tool's result",
}


@dataclass(frozen=True)
class Sent:
    """A message that was new, or the part of it that was."""

    who: str
    """Whose it is."""
    left_out: str
    """What of its beginning is not shown again; empty for nothing."""
    text: Block
    """The rest."""


@dataclass(frozen=True)
class Call:
    """A tool that the model called."""

    name: str
    arguments: Block
    brief: bool
    """Whether the arguments fit the line of the name."""
    result: Block
    ok: bool


@dataclass(frozen=True)
class Step:
    """One request and what became of it."""

    number: int
    """From 1."""
    title: str
    gist: str
    """What became of it, in a few words."""
    bad: bool
    """Whether that is a failure, or an answer with problems."""
    facts: tuple[tuple[str, str], ...]
    repeated: str
    """What was sent again, in a sentence; empty for nothing."""
    sent: tuple[Sent, ...]
    """What was new."""
    said: Block | None
    calls: tuple[Call, ...]
    problems: tuple[tuple[str, Block, Block], ...]
    """Where and which kind; what is wrong; what to do about it."""
    failure: tuple[str, Block, Block] | None
    """Code, message and hint."""


@dataclass
class _Known:
    """What earlier steps showed."""

    messages: dict[Message, int] = field(default_factory=dict)
    """Message to the step that sent it first."""
    said: set[tuple[str, tuple[ToolCall, ...]]] = field(default_factory=set)
    """What the model said and called."""
    results: set[str] = field(default_factory=set)
    """What tools told it."""


def answers_of(transcript: Transcript) -> tuple[int, ...]:
    """The places of the exchanges whose reply was read as a plan.

    Where the model stopped looking by writing its plan, that reply is the first answer, and no question for it follows.
    """
    last = len(transcript.exchanges) - 1
    found = []
    for place, exchange in enumerate(transcript.exchanges):
        taken = place == last and transcript.outcome == "plan"
        if exchange.reply is not None and (exchange.purpose != "investigate" or exchange.problems or taken):
            found.append(place)
    return tuple(found)


def steps_of(transcript: Transcript) -> tuple[Step, ...]:
    """Every exchange, in order."""
    known = _Known()
    answers = set(answers_of(transcript))
    last = len(transcript.exchanges) - 1
    steps = []
    for place, exchange in enumerate(transcript.exchanges):
        accepted = place == last and transcript.outcome == "plan"
        repeated, sent = _new_in(exchange, known) if place else ("", ())
        steps.append(_step(exchange, place + 1, repeated, sent, is_answer=place in answers, accepted=accepted))
        for message in exchange.request.messages:
            known.messages.setdefault(message, place + 1)
        if exchange.reply is not None:
            # A later request holds it with its calls, or, where calls are written as JSON, without.
            known.said |= {(exchange.reply.text, exchange.reply.tool_calls), (exchange.reply.text, ())}
        known.results.update(called.result for called in exchange.called)
    return tuple(steps)


def _step(
    exchange: Exchange, number: int, repeated: str, sent: tuple[Sent, ...], *, is_answer: bool, accepted: bool
) -> Step:
    reply, failed = exchange.reply, exchange.failed
    return Step(
        number=number,
        title=_TITLES[exchange.purpose],
        gist=_gist(exchange, is_answer=is_answer, accepted=accepted),
        bad=bool(failed or exchange.problems),
        facts=_facts(exchange),
        repeated=repeated,
        sent=sent,
        said=json_block(reply.text) if reply is not None and reply.text else None,
        calls=tuple(map(_call, exchange.called)),
        problems=tuple(
            (
                f"{line(problem.modification or 'the plan')}: {line(problem.code)}",
                block(problem.message),
                block(problem.hint),
            )
            for problem in exchange.problems
        ),
        failure=(line(failed.code), block(failed.message), block(failed.hint)) if failed else None,
    )


def _gist(exchange: Exchange, *, is_answer: bool, accepted: bool) -> str:
    problems = counted(len(exchange.problems), "problem")
    if exchange.failed:
        return f"failed: {line(exchange.failed.code, longest=60)}"
    if exchange.reply is None:
        return "no answer was recorded"
    if is_answer and accepted:
        return f"the plan was taken, with {problems}" if exchange.problems else "the plan was taken"
    if exchange.problems:
        return f"an answer with {problems}"
    if is_answer:
        return "an answer"
    if not exchange.called:
        return "it called nothing"
    names = Counter(line(called.name, longest=40) for called in exchange.called)
    shown = [name if times == 1 else f"{name} ({times} times)" for name, times in list(names.items())[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        shown.append(f"and {len(names) - _MOST_NAMES} more")
    refused = sum(not called.ok for called in exchange.called)
    return f"called {', '.join(shown)}" + (f"; {refused} refused" if refused else "")


def _facts(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    request, reply = exchange.request, exchange.reply
    facts: list[tuple[str, str]] = [("purpose", exchange.purpose)]
    if reply is not None:
        facts += [
            ("answer asked for as", reply.rung if request.shape else "free text"),
            ("tokens sent", _tokens(reply.usage.input_tokens)),
            ("tokens received", _tokens(reply.usage.output_tokens)),
            ("attempts", f"{reply.attempts:,}"),
            ("finish reason", line(reply.finish_reason) or "not said"),
            ("model, as it calls itself", line(reply.model) or "not said"),
        ]
        if reply.usage.cost_usd is not None:
            facts.append(("cost", f"${reply.usage.cost_usd:.4f}"))
        if reply.cached:
            facts.append(("kept answer", "from an earlier run"))
    facts += [("tools offered", f"{len(request.tools):,}"), ("request digest", line(exchange.digest[:16]))]
    return tuple(facts)


def _tokens(count: int) -> str:
    return f"{count:,}" if count else "not said"


def _call(called: CalledTool) -> Call:
    brief = len(called.arguments) <= _SHORT_ARGUMENTS and "\n" not in called.arguments
    # A refusal says what was wrong, and is worth its room.
    folded = None if called.ok or len(called.result) > 8000 else False
    arguments = block(called.arguments) if brief else json_block(called.arguments)
    return Call(line(called.name), arguments, brief, json_block(called.result, folded=folded), called.ok)


def _new_in(exchange: Exchange, known: _Known) -> tuple[str, tuple[Sent, ...]]:
    """What the request repeats, in a sentence, and what is new in it."""
    sent: list[Sent] = []
    before = said = results = 0
    for message in exchange.request.messages:
        if message in known.messages:
            before += 1
        elif message.role == "assistant" and (message.content, message.tool_calls) in known.said:
            said += 1
        elif message.role == "tool" and _result_in(message.content) in known.results:
            results += 1
        else:
            sent.append(_sent(message, known))
    parts = [
        *([counted(before, "message") + " sent before"] if before else []),
        *([counted(said, "answer") + " of the model shown above"] if said else []),
        *([counted(results, "tool result") + " shown above"] if results else []),
    ]
    total = counted(len(exchange.request.messages), "message")
    return f"{total} in all; not shown again: {', '.join(parts)}." if parts else "", tuple(sent)


def _result_in(content: str) -> str:
    """A tool's result without the line about the steps that are left."""
    from planner.analysts.transcript import STEPS_LEFT  # here, because a page of a profile needs no analyst

    result, found, _ = content.rpartition(STEPS_LEFT)
    return result if found else content


def _sent(message: Message, known: _Known) -> Sent:
    earlier = [
        (_beginning(message.content, other.content), step)
        for other, step in known.messages.items()
        if other.role == message.role
    ]
    length, step = max(earlier, default=(0, 0))
    length = length if length >= _SHORTEST_BEGINNING else 0
    left_out = f"begins with the {counted(length, 'character')} sent in step {step}, not shown again" if length else ""
    rest = message.content[length:].lstrip("\n") if length else message.content
    calls = "".join(f"\n[calls {call.name} {call.arguments}]" for call in message.tool_calls)
    return Sent(_SPEAKERS[message.role], left_out, block(rest + calls))


def _beginning(text: str, other: str) -> int:
    """How many characters two texts share at their beginning, in whole lines."""
    both = min(len(text), len(other))
    shared = next((place for place in range(both) if text[place] != other[place]), both)
    return shared if shared == both else text.rfind("\n", 0, shared) + 1


def opening_of(transcript: Transcript) -> tuple[Sent, ...]:
    """The messages of the first request, whole."""
    first = transcript.exchanges[:1]
    sent = (_sent(message, _Known()) for exchange in first for message in exchange.request.messages)
    shown = (replace(each, text=replace(each.text, folded=True)) for each in sent)
    return tuple(replace(each, who="Task message") if each.who == _SPEAKERS["user"] else each for each in shown)
