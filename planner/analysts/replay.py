"""Plays a transcript again: the same questions get the same answers, with no network."""

from __future__ import annotations

from planner.analysts.transcript import Exchange, Transcript, request_digest
from planner.errors import AnalystFailed, FeatureRefused, PlannerError, TranscriptUnusable
from planner.llm import Reply, Request

__all__ = ["ReplayClient"]

_HINT = "replay with the planner, the checkpoint, the policy and the evidence that the transcript was made with"


class ReplayClient:
    """A `Client` whose answers are those of a transcript, in order; another question is an error, never a guess."""

    def __init__(self, transcript: Transcript) -> None:
        self.name = transcript.model
        self._exchanges = transcript.exchanges
        self._played = 0
        self.native_tools: bool | None = {"native": None, "protocol": False, "none": None}[transcript.tool_use]

    def complete(self, request: Request, *, within_s: float | None = None) -> Reply:  # noqa: ARG002 - nothing to wait for
        """The recorded reply to this very request. Raises `TranscriptUnusable`, or the error that was recorded."""
        if self._played == len(self._exchanges):
            raise TranscriptUnusable(
                f"the transcript ends after {self._played} requests, and one more is asked", hint=_HINT
            )
        exchange = self._exchanges[self._played]
        self._played += 1
        if exchange.digest != request_digest(request):
            raise TranscriptUnusable(
                f"request {self._played} is not the one in the transcript: {_difference(request, exchange)}", hint=_HINT
            )
        if exchange.failed:
            failed = exchange.failed
            kind = _failures().get(failed.code, AnalystFailed)
            if issubclass(kind, FeatureRefused):
                raise kind(failed.message, hint=failed.hint, feature=failed.feature)
            raise kind(failed.message, hint=failed.hint)
        if exchange.reply is None:
            raise TranscriptUnusable(
                f"the conversation was interrupted at request {self._played}, which has no answer",
                hint="ask again: what was answered is kept, and not asked for twice",
            )
        return exchange.reply

    def close(self) -> None:
        """Nothing to let go."""


def _difference(request: Request, exchange: Exchange) -> str:
    """Where the two first differ, in words."""
    ours, theirs = request.model_dump(), exchange.request.model_dump()
    for place, (mine, kept) in enumerate(zip(ours["messages"], theirs["messages"], strict=False), start=1):
        if mine != kept:
            return f"message {place} ({mine['role']}) differs"
    fields = [name for name in ours if ours[name] != theirs[name]]
    return f"{', '.join(fields) or 'its digest'} differs"


def _failures() -> dict[str, type[PlannerError]]:
    found: dict[str, type[PlannerError]] = {}
    waiting: list[type[PlannerError]] = [AnalystFailed]
    while waiting:
        kind = waiting.pop()
        found[kind.code] = kind
        waiting += kind.__subclasses__()
    return found
