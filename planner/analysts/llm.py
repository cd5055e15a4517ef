"""A larger language model studies the profile and writes the plan; what is wrong with it goes back, at most N times.

Nothing the model says is trusted: its text is read strictly and then checked like any other plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import ValidationError

from planner.analysts.answer import Answer, read_answer
from planner.analysts.base import Brief, drafted
from planner.analysts.context import (
    elements_catalogue,
    operation_catalogue,
    printable,
    render_model,
    render_statistics,
)
from planner.analysts.prompts import prompts_sha256, render
from planner.analysts.transcript import Transcript
from planner.errors import NoValidPlan
from planner.llm import Client, Message, Reply, Request, redact
from planner.plan import AnalystRecord, Plan, Problem, Usage, problems_of

__all__ = ["LLMAnalyst"]

_LONGEST_PROBLEM = 2000

Told = Callable[[str], None]


class LLMAnalyst:
    """Asks one model; re-asks with every problem found, at most `most_repairs` times."""

    def __init__(
        self,
        client: Client,
        *,
        most_repairs: int = 2,
        max_output_tokens: int = 8192,
        temperature: float | None = None,
        secrets: Sequence[str] = (),
        tell: Told | None = None,
    ) -> None:
        self._client = client
        self._most_repairs = most_repairs
        self._max_output_tokens = max_output_tokens
        self._temperature = temperature
        self._secrets = tuple(secrets)
        self._tell = tell or _silent
        self.transcript = Transcript(model=client.name, prompt_sha256=prompts_sha256())
        """Every request and answer so far; complete also after a failure."""

    def propose(self, brief: Brief) -> Plan:
        """A plan that the check accepts. Raises `NoValidPlan` with the last problems, or what the client raises."""
        messages = _opening(brief)
        problems: list[Problem] = []
        for attempt in range(self._most_repairs + 1):
            self._tell(f"asking {self._client.name}" + (f", {len(problems)} problems to mend" if attempt else ""))
            reply = self._asked(messages)
            found = self._understood(reply.text, brief)
            if isinstance(found, Plan):
                return found
            problems = found
            self.transcript = self.transcript.with_problems(problems)
            messages += (
                Message(role="assistant", content=reply.text),
                Message(role="user", content=render("repair.md", problems=_listed(problems))),
            )
        asked = self._most_repairs + 1
        raise NoValidPlan(
            f"{asked} answer{'s' if asked > 1 else ''} of {self._client.name}, none of them a valid plan",
            hint="try a stronger model, more --repairs, or `--analyst rules`; the transcript holds every answer",
            problems=tuple(str(problem) for problem in problems),
        )

    def _asked(self, messages: tuple[Message, ...]) -> Reply:
        request = Request(messages=messages, max_output_tokens=self._max_output_tokens, temperature=self._temperature)
        self.transcript = self.transcript.with_request(request)
        reply = self._client.complete(request)
        # An endpoint that echoes the key must not write it into the plan, through the model's words or its name.
        clean = {"text": redact(reply.text, self._secrets), "model": redact(reply.model, self._secrets)}
        reply = reply.model_copy(update=clean)
        self.transcript = self.transcript.with_reply(reply)
        return reply

    def _understood(self, text: str, brief: Brief) -> Plan | list[Problem]:
        answer = read_answer(text)
        if not isinstance(answer, Answer):
            return answer
        try:
            plan = drafted(brief, self._record(), answer.modifications)
        except ValidationError as error:  # what only the plan as a whole can break, such as an id used twice
            return problems_of(error, None)
        report = brief.check(plan)
        plan = plan.model_copy(update={"note": _one_line(answer.note)})
        return list(report.problems) or plan

    def _record(self) -> AnalystRecord:
        replies = [exchange.reply for exchange in self.transcript.exchanges if exchange.reply]
        costs = [reply.usage.cost_usd for reply in replies]
        return AnalystRecord(
            kind="llm",
            model=replies[-1].model[:200] if replies else self._client.name[:200],
            prompt_sha256=self.transcript.prompt_sha256,
            requests=len(replies),
            usage=Usage(
                input_tokens=sum(reply.usage.input_tokens for reply in replies),
                output_tokens=sum(reply.usage.output_tokens for reply in replies),
                cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
            ),
        )


def _one_line(note: str) -> str:
    """A model's sentence, safe to show in a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in note).split())[:1000]


def _listed(problems: Sequence[Problem]) -> list[str]:
    """One line each: a hint may name tensors, and a name may hold anything."""
    return [printable(str(problem), longest=_LONGEST_PROBLEM) for problem in problems]


def _opening(brief: Brief) -> tuple[Message, ...]:
    task = render(
        "task.md",
        goal=brief.goal,
        policy=brief.policy,
        operations=operation_catalogue(),
        elements=elements_catalogue(),
        model=render_model(brief.profile),
        statistics=render_statistics(brief.profile),
    )
    return Message(role="system", content=render("system.md")), Message(role="user", content=task)


def _silent(_: str) -> None:
    pass
