"""A client whose answers hold no secret: an endpoint that echoes a key must not get it into a plan or a file."""

from __future__ import annotations

from collections.abc import Sequence

from planner.llm.base import Client, Reply, Request
from planner.llm.in_front import InFront
from planner.llm.redaction import redact

__all__ = ["RedactingClient"]


class RedactingClient(InFront):
    """A `Client` that asks another one and takes all `secrets` out of what comes back."""

    def __init__(self, client: Client, secrets: Sequence[str]) -> None:
        super().__init__(client)
        self._secrets = tuple(secrets)

    def complete(self, request: Request, *, within_s: float | None = None) -> Reply:
        """The other client's answer, redacted."""
        reply = self._client.complete(request, within_s=within_s)
        calls = tuple(
            call.model_copy(update={"name": self._clean(call.name), "arguments": self._clean(call.arguments)})
            for call in reply.tool_calls
        )
        clean = {"text": self._clean(reply.text), "model": self._clean(reply.model), "tool_calls": calls}
        return reply.model_copy(update=clean)

    def _clean(self, text: str) -> str:
        return redact(text, self._secrets)
