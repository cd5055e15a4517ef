"""A client that answers from a list; for tests, here and in programs that build on this package."""

from __future__ import annotations

from collections.abc import Sequence

from planner.llm.base import Reply, Request, Usage

__all__ = ["ScriptedClient"]


class ScriptedClient:
    """Gives `answers` one by one: a text, a whole reply, or an exception that is raised.

    `requests` holds what was asked.
    """

    def __init__(self, answers: Sequence[str | Reply | Exception], *, name: str = "scripted") -> None:
        self.name = name
        self.requests: list[Request] = []
        self._answers = tuple(answers)

    def complete(self, request: Request, *, within_s: float | None = None) -> Reply:  # noqa: ARG002 - the seam
        """The next answer. Raises AssertionError when there is none left: the script, or the caller, is wrong."""
        self.requests.append(request)
        if len(self.requests) > len(self._answers):
            raise AssertionError(f"request {len(self.requests)} to a script of {len(self._answers)} answers")
        answer = self._answers[len(self.requests) - 1]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Reply):
            return answer
        usage = Usage(input_tokens=0, output_tokens=0, cost_usd=None)
        return Reply(text=answer, model=self.name, finish_reason="stop", usage=usage, attempts=1)

    def close(self) -> None:
        """Nothing to let go."""
