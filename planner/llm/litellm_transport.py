"""The one door through which litellm opens connections: bounded answers, no redirects, and a pool for each client.

litellm has two ways to make HTTP clients (the openai SDK, and a handler of its own, which follows redirects), and
caches both for the process. Both take what stands in its settings `client_session` and `sync_transport`, so this stands
there. Which pool a request uses goes by a context variable: litellm sends in the thread and context of its caller.

litellm also rewords what endpoints say, files lost connections under status 500, invents the reason why an answer ended
and prints warnings about odd fields. So what came back is written down here before litellm sees it, and a chat
completion is checked and tidied first.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.llm.completions import tidied
from planner.llm.connections import http_client
from planner.llm.failures import response_failure
from planner.llm.redaction import Redactor
from planner.llm.responses import ACCEPTED_CODINGS, ResponseRefused
from planner.llm.retries import Failure

if TYPE_CHECKING:
    import httpx

__all__ = ["Exchange", "install", "pool_client"]


@dataclass
class Exchange:
    """What one attempt sends through, and what really came back last."""

    client: httpx.Client
    redactor: Redactor
    failure: Failure | None = None
    """Of a response that was not read on, or is no whole chat completion."""
    refusal: httpx.Response | None = None
    """A response with a status of 400 or more."""
    lost: str = ""
    """Why there was no response."""
    answered: bool = False
    """Whether there was a response that was given to litellm."""

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Send the requests that litellm makes inside the block through this exchange."""
        token = _EXCHANGE.set(self)
        try:
            yield
        finally:
            _EXCHANGE.reset(token)

    def send(self, request: httpx.Request) -> httpx.Response:
        """The response, read whole. Raises what litellm takes for a lost connection, once it is written down."""
        import httpx

        self.failure, self.refusal, self.lost, self.answered = None, None, "", False
        # litellm's own headers ask for codings that are not taken.
        request.headers["accept-encoding"] = ACCEPTED_CODINGS
        try:
            response = self.client.send(request)
        except ResponseRefused as refused:
            self.failure = response_failure(refused, self.redactor)
            raise
        except httpx.HTTPError as error:
            self.lost = str(error) or type(error).__name__
            raise
        content: bytes = response.content
        if response.is_error:
            self.refusal = response
        elif request.url.path.endswith("/chat/completions"):
            tidy = tidied(content, may_call=b'"tools"' in request.content, redactor=self.redactor)
            if isinstance(tidy, Failure):
                self.failure = tidy
                raise ResponseRefused(tidy.message, tidy.hint)
            content = tidy
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name not in ("content-type", "transfer-encoding", "connection")
        ]
        self.answered = not response.is_error
        # The SDK would give JSON under any other type as a str.
        return httpx.Response(
            response.status_code, headers=[*headers, ("content-type", "application/json")], content=content
        )


_EXCHANGE: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("planner_litellm", default=None)


def pool_client(*, loopback: bool) -> httpx.Client:
    """A client whose connections an exchange uses. Raises ResponseRefused, as `http_client` does."""
    import httpx

    return http_client(httpx.Client, httpx, loopback=loopback)


def install(litellm: Any) -> None:
    """Make litellm use this door, unless the process has set up one of its own."""
    import httpx

    door = _door()
    if getattr(litellm, "sync_transport", None) is None:
        litellm.sync_transport = door
    if getattr(litellm, "client_session", None) is None:
        litellm.client_session = httpx.Client(transport=door, follow_redirects=False)


@functools.cache
def _door() -> httpx.BaseTransport:
    import httpx

    class Door(httpx.BaseTransport):
        """Hands a request to the exchange of the moment; other users of litellm in this process get a plain client."""

        def __init__(self) -> None:
            self._plain: httpx.Client | None = None

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            exchange = _EXCHANGE.get()
            if exchange is not None:
                return exchange.send(request)
            client = self._plain = self._plain or httpx.Client()
            return client.send(request, stream=True)

        def close(self) -> None:
            """Nothing: the clients that litellm throws away do not own the pools."""

    return Door()
