"""What was sent to a model and what came back, in full; kept beside the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from planner.llm import Reply, Request, redact
from planner.plan import Problem
from planner.records import Record

__all__ = ["Exchange", "Transcript"]


class Exchange(Record):
    """One request and what became of it."""

    request: Request
    """What was sent."""
    reply: Reply | None = None
    """What came back; null where nothing usable did."""
    problems: tuple[Problem, ...] = ()
    """What was wrong with it."""


class Transcript(Record):
    """A whole conversation with a model."""

    schema_: Literal["planner/transcript@1"] = Field(default="planner/transcript@1", alias="schema")
    """Kind and version of this file."""
    model: str
    """The model that was asked for."""
    prompt_sha256: str
    """Digest of the prompt templates."""
    exchanges: tuple[Exchange, ...] = ()
    """In order."""

    def with_request(self, request: Request) -> Self:
        """The transcript after one more request."""
        return self.model_copy(update={"exchanges": (*self.exchanges, Exchange(request=request))})

    def with_reply(self, reply: Reply) -> Self:
        """The transcript after the answer to the last request."""
        return self._with_last(reply=reply)

    def with_problems(self, problems: Sequence[Problem]) -> Self:
        """The transcript after the last answer was found wanting."""
        return self._with_last(problems=tuple(problems))

    def encoded(self, secrets: Sequence[str]) -> bytes:
        """The transcript as a file, without any of `secrets`."""
        return redact(self.model_dump_json(indent=2), tuple(secrets)).encode() + b"\n"

    def _with_last(self, **update: object) -> Self:
        *earlier, last = self.exchanges
        return self.model_copy(update={"exchanges": (*earlier, last.model_copy(update=update))})
