"""Any endpoint that speaks OpenAI's chat completions, through the openai SDK: hosted, gateway or local."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from planner.errors import EndpointUnreachable
from planner.llm.base import Reply, Request
from planner.llm.endpoint import resolve
from planner.llm.failures import read_body, status_failure
from planner.llm.redaction import Redactor, printable, secrets_in
from planner.llm.retries import Backoff, Failure, complete_with_retries, within
from planner.strict_json import JsonRefused, loads

__all__ = ["OpenAICompatibleClient"]

_CONNECT_S = 10.0
_MODEL_LIST_S = 5.0
_MODELS_SHOWN = 5
_LONGEST_NO_SECRET = 4
# These refuse max_tokens for their newer models; many other servers know only max_tokens.
_NEWER_LIMIT_HOSTS = ("openai.com", "openai.azure.com")


class OpenAICompatibleClient:
    """A `Client` for one model at one endpoint.

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

    def complete(self, request: Request) -> Reply:
        """Ask the endpoint; see `Client.complete`."""
        # Imported before the clock starts: on a slow disk it takes seconds.
        import openai.resources.chat  # noqa: F401

        return complete_with_retries(
            lambda left_s: self._attempt(request, left_s),
            timeout_s=self._timeout_s,
            backoff=self._backoff,
            redactor=self._redactor,
        )

    def _attempt(self, request: Request, left_s: float) -> Reply | Failure:
        import httpx
        import openai

        http_client = openai.DefaultHttpxClient(
            # A redirect could leave this machine, or carry the prompt to somebody who was not named.
            follow_redirects=False,
            # A proxy cannot reach this machine's loopback, and would make a local request leave it.
            trust_env=not self._endpoint.loopback,
        )
        with (
            self._redactor.over_logs(),
            openai.OpenAI(
                api_key=self._endpoint.key,
                base_url=self._endpoint.url,
                max_retries=0,
                # The overall deadline ends the wait; a second later this ends the thread that was left behind.
                timeout=httpx.Timeout(left_s + 1, connect=min(left_s, _CONNECT_S)),
                http_client=http_client,
            ) as client,
        ):
            # Raw: the SDK would build its model from any JSON unchecked, and give a str for any other type.
            create: Callable[..., Any] = client.chat.completions.with_raw_response.create
            try:
                raw = create(**self._body(request))
            except openai.APIStatusError as error:
                return self._refused(error, left_s)
            except openai.APIConnectionError as error:
                return self._unreachable(error)
            return self._named(read_body(raw.http_response.content, self._redactor))

    def _body(self, request: Request) -> dict[str, Any]:
        newer = any(
            self._endpoint.host == host or self._endpoint.host.endswith(f".{host}") for host in _NEWER_LIMIT_HOSTS
        )
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [message.model_dump() for message in request.messages],
            "max_completion_tokens" if newer else "max_tokens": request.max_output_tokens,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        return body

    def _named(self, outcome: Reply | Failure) -> Reply | Failure:
        if isinstance(outcome, Reply) and not outcome.model:
            return outcome.model_copy(update={"model": self.name})
        return outcome

    def _refused(self, error: Any, left_s: float) -> Failure:
        response = error.response
        failure = status_failure(
            response.status_code,
            response.text,
            response.headers,
            keys=self._endpoint.key_variable or "that PLANNER_API_KEY or OPENAI_API_KEY is set",
            redactor=self._redactor,
        )
        if response.status_code == 404 and (models := self._models(min(_MODEL_LIST_S, left_s))):
            shown = ", ".join(printable(name[:80]) for name in models[:_MODELS_SHOWN])
            more = f" and {len(models) - _MODELS_SHOWN} more" if len(models) > _MODELS_SHOWN else ""
            return Failure(failure.kind, failure.message, f"the endpoint knows these models: {shown}{more}")
        return failure

    def _unreachable(self, error: BaseException) -> Failure:
        cause = error.__cause__
        detail = self._redactor.excerpt(str(cause) or type(cause).__name__) if cause else "no connection"
        return Failure(
            EndpointUnreachable,
            f"no answer from {self._endpoint.url}: {detail}",
            "check the address and the network; for a local server, check that it runs",
            can_pass=True,
        )

    def _models(self, seconds: float) -> list[str]:
        """The ids the endpoint lists, or nothing: this only serves a hint, so its own failures do not count."""
        import httpx

        def get() -> str:
            return httpx.get(
                f"{self._endpoint.url}/models",
                headers={"Authorization": f"Bearer {self._endpoint.key}"},
                timeout=seconds,
                trust_env=not self._endpoint.loopback,
            ).text

        try:
            value = loads(within(seconds, get))
        except (httpx.HTTPError, TimeoutError, JsonRefused):
            return []
        listed = value.get("data") if isinstance(value, dict) else None
        entries = listed if isinstance(listed, list) else []
        return [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
