"""Any endpoint that speaks OpenAI's chat completions, through the openai SDK: hosted, gateway or local."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from planner.errors import EndpointUnreachable
from planner.llm.base import Reply, Request
from planner.llm.completions import read_body
from planner.llm.connections import Pool, http_client, http_library
from planner.llm.endpoint import resolve
from planner.llm.failures import response_failure, status_failure
from planner.llm.prices import cost_of, price_of
from planner.llm.redaction import Redactor, printable, secrets_in
from planner.llm.responses import ResponseRefused, refusal_in
from planner.llm.retries import Backoff, Failure, complete_with_retries, within
from planner.llm.wire import chat_body
from planner.strict_json import JsonRefused, loads

if TYPE_CHECKING:
    import openai

__all__ = ["OpenAICompatibleClient"]

_CONNECT_S = 10.0
_MODEL_LIST_S = 5.0
_MODELS_SHOWN = 5
_LONGEST_NO_SECRET = 4
# These refuse max_tokens for their newer models; many other servers know only max_tokens.
_NEWER_LIMIT_HOSTS = ("openai.com", "openai.azure.com")
_OPENAI_HOST = "api.openai.com"


class OpenAICompatibleClient:
    """A `Client` for one model at one endpoint. Its connections are kept for the next request, until `close`.

    The constructor opens no connection; it raises UsageError (no address), NetworkForbidden and KeyMissing.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        timeout_s: float,
        environment: Mapping[str, str],
        backoff: Backoff | None = None,
    ) -> None:
        self.name = model
        self._endpoint = resolve(base_url, environment)
        self._timeout_s = timeout_s
        self._backoff = backoff or Backoff()
        # A local server's "x" or "none" is no secret, and redacting it would spoil every message.
        own = (self._endpoint.key,) if len(self._endpoint.key) > _LONGEST_NO_SECRET else ()
        self._redactor = Redactor({*own, *secrets_in(environment)})
        self._pool: Pool[openai.OpenAI] = Pool(self._sdk)

    def complete(self, request: Request, *, within_s: float | None = None) -> Reply:
        """Ask the endpoint; see `Client.complete`."""
        # Imported before the clock starts: on a slow disk it takes seconds.
        import openai.resources.chat  # noqa: F401

        return complete_with_retries(
            lambda left_s: self._attempt(request, left_s),
            timeout_s=self._timeout_s if within_s is None else min(self._timeout_s, within_s),
            backoff=self._backoff,
            redactor=self._redactor,
            abandoned=self._pool.drop,
        )

    def close(self) -> None:
        """Let the connections go; the next request would open new ones."""
        self._pool.drop()

    @property
    def endpoint(self) -> str:
        """The address, which holds no secret."""
        return self._endpoint.url

    def _sdk(self) -> openai.OpenAI:
        import openai

        return openai.OpenAI(
            api_key=self._endpoint.key,
            base_url=self._endpoint.url,
            max_retries=0,
            http_client=http_client(openai.DefaultHttpxClient, http_library(), loopback=self._endpoint.loopback),
        )

    def _attempt(self, request: Request, left_s: float) -> Reply | Failure:
        try:
            with self._redactor.over_logs(), self._pool.lent() as client:
                return self._asked(client, request, left_s)
        except ResponseRefused as refused:  # openai 3 lets it through, openai 2 wraps it
            return response_failure(refused, self._redactor)

    def _asked(self, client: openai.OpenAI, request: Request, left_s: float) -> Reply | Failure:
        import openai

        # Raw: the SDK would build its model from any JSON unchecked, and give a str for any other type.
        create: Callable[..., Any] = client.chat.completions.with_raw_response.create
        try:
            # The overall deadline ends the wait; a second later this ends the thread that was left behind.
            raw = create(
                **self._body(request),
                timeout=http_library().Timeout(left_s + 1, connect=min(left_s, _CONNECT_S)),
            )
        except openai.APIStatusError as error:
            return self._refused(error, request, client, left_s)
        except openai.APIConnectionError as error:
            return self._unreachable(error)
        outcome = read_body(raw.http_response.content, request, self._redactor)
        if isinstance(outcome, Failure) and outcome.can_pass:
            self._pool.drop()  # a body shorter than it should be: its rest may come as the next answer
        return self._finished(outcome)

    def _body(self, request: Request) -> dict[str, Any]:
        newer = any(
            self._endpoint.host == host or self._endpoint.host.endswith(f".{host}") for host in _NEWER_LIMIT_HOSTS
        )
        limit = "max_completion_tokens" if newer else "max_tokens"
        return {"model": self.name, limit: request.max_output_tokens, **chat_body(request)}

    def _finished(self, outcome: Reply | Failure) -> Reply | Failure:
        if isinstance(outcome, Failure):
            return outcome
        # Who else serves a model of that name has a price of his own.
        price = price_of(self.name) if self._endpoint.host == _OPENAI_HOST else None
        usage = outcome.usage.model_copy(update={"cost_usd": cost_of(outcome.usage, price)})
        return outcome.model_copy(update={"usage": usage, "model": outcome.model or self.name})

    def _refused(self, error: Any, request: Request, client: openai.OpenAI, left_s: float) -> Failure:
        response = error.response
        failure = status_failure(
            response.status_code,
            response.text,
            response.headers,
            request=request,
            model=self.name,
            keys=self._endpoint.key_variable or "that PLANNER_API_KEY or OPENAI_API_KEY is set",
            redactor=self._redactor,
        )
        if (
            response.status_code == 404
            and not failure.feature
            and (models := self._models(client, min(_MODEL_LIST_S, left_s)))
        ):
            shown = ", ".join(printable(name[:80]) for name in models[:_MODELS_SHOWN])
            more = f" and {len(models) - _MODELS_SHOWN} more" if len(models) > _MODELS_SHOWN else ""
            return Failure(failure.kind, failure.message, f"the endpoint knows these models: {shown}{more}")
        return failure

    def _unreachable(self, error: BaseException) -> Failure:
        if refused := refusal_in(error):
            return response_failure(refused, self._redactor)
        cause = error.__cause__
        detail = self._redactor.excerpt(str(cause) or type(cause).__name__) if cause else "no connection"
        return Failure(
            EndpointUnreachable,
            f"no answer from {self._endpoint.url}: {detail}",
            "check the address and the network; for a local server, check that it runs",
            can_pass=True,
        )

    def _models(self, client: openai.OpenAI, seconds: float) -> list[str]:
        """The ids the endpoint lists, or nothing: this only serves a hint, so its own failures do not count."""
        import openai

        def get() -> str:
            return client.models.with_raw_response.list(timeout=seconds).http_response.text

        try:
            value = loads(within(seconds, get))
        except (openai.OpenAIError, ResponseRefused, TimeoutError, JsonRefused):
            return []
        listed = value.get("data") if isinstance(value, dict) else None
        entries = listed if isinstance(listed, list) else []
        return [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
