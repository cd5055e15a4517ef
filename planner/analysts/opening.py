"""The first question: goal, policy, operations, and as much of what is known as fits."""

from __future__ import annotations

from collections.abc import Callable

from planner.analysts.aliases import Aliases
from planner.analysts.base import Brief
from planner.analysts.budget import request_tokens
from planner.analysts.catalogue import catalogue
from planner.analysts.judging import refused_effects
from planner.analysts.picture import picture_of
from planner.analysts.prompts import render
from planner.analysts.settings import MOST_CALLS, Asking
from planner.analysts.tools import Bench, offered
from planner.effects import EVIDENCE_TOLERANCE
from planner.llm import Message, Request, Tool
from planner.llm.tokens import estimated_tokens
from planner.records import Record

__all__ = ["Opening", "context_limit", "first_question", "opening_of"]

_SMALLEST_PICTURE = 600
_FEW_TENSORS = 1000


class Opening(Record):
    """The messages that begin a conversation."""

    messages: tuple[Message, Message]
    """System, and task."""
    look: str
    """What stands below the task as long as there are tools to call; empty without."""
    tools: tuple[Tool, ...]
    """What the model may call."""
    tokens: int
    """The estimate of what messages and tools take."""
    left_out: tuple[str, ...]
    """What did not fit."""


def context_limit(brief: Brief, wanted: int | None) -> int:
    """Most tokens of the first question: what the user said, else by the number of tensors."""
    return wanted or (8_000 if len(brief.profile.tensors) <= _FEW_TENSORS else 24_000)


def first_question(brief: Brief, asking: Asking, *, record: str = "", clean: Callable[[str], str] = str) -> Opening:
    """What a model would be asked first; nothing is sent."""
    aliases = Aliases((tensor.name for tensor in brief.profile.tensors), brief.model)
    offers = offered(Bench(brief, aliases)) if asking.tools else ()
    limit = context_limit(brief, asking.context_tokens)
    steps = asking.limits.steps
    asked = opening_of(brief, aliases, tokens=limit, tools=offers, steps=steps, record=record, clean=clean)
    system, task = asked.messages
    with_look = Message(role="user", content=f"{task.content}\n{asked.look}" if asked.look else task.content)
    return asked.model_copy(update={"messages": (system, with_look), "look": ""})


def opening_of(
    brief: Brief,
    aliases: Aliases,
    *,
    tokens: int,
    tools: tuple[Tool, ...],
    steps: int,
    record: str,
    clean: Callable[[str], str],
) -> Opening:
    """The first question in at most `tokens`, by the local estimate, where the fixed part leaves room for anything."""

    def messages(picture: str) -> tuple[Message, Message]:
        task = render(
            "task.md",
            goal=brief.goal,
            policy=brief.policy,
            refused=refused_effects(brief.policy),
            record=record,
            catalogue=catalogue(brief.policy, tools=bool(tools)),
            picture=picture,
            example=render("example.md", evidence=brief.evidence is not None),
        )
        system = render("system.md", tolerance=f"{EVIDENCE_TOLERANCE:.0%}")
        return Message(role="system", content=clean(system)), Message(role="user", content=clean(task))

    look = render("look.md", steps=steps, calls=MOST_CALLS) if tools else ""

    def size(of: tuple[Message, ...]) -> int:
        # Without the shape of the answer, which goes with the question for the plan alone, and not with the tools.
        return request_tokens(Request(messages=of, tools=tools)) + estimated_tokens(look)

    room = tokens - size(messages(""))
    picture = picture_of(brief, aliases, tokens=max(room, _SMALLEST_PICTURE), tools=bool(tools))
    filled = messages(picture.text)
    return Opening(messages=filled, look=look, tools=tools, tokens=size(filled), left_out=picture.left_out)
