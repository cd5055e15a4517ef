"""Models named `provider/model`, through litellm (an optional extra)."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from planner.errors import EndpointRefused, EndpointUnreachable, ExtraMissing, KeyMissing, UsageError
from planner.llm.base import Reply, Request
from planner.llm.completions import read_completion
from planner.llm.connections import Pool
from planner.llm.endpoint import address, forbid_if_offline, is_loopback
from planner.llm.failures import response_failure, status_failure
from planner.llm.litellm_transport import Exchange, install, pool_client
from planner.llm.redaction import Redactor, printable, secrets_in
from planner.llm.responses import ResponseRefused
from planner.llm.retries import Backoff, Failure, complete_with_retries
from planner.llm.wire import chat_body

__all__ = ["LiteLLMClient"]

# litellm words it differently for each provider, under several exception classes.
_NO_KEY = re.compile(r"missing\b.{0,40}\b(?:api[ _]?key|credentials)", re.IGNORECASE)


class LiteLLMClient:
    """A `Client` for one `provider/model`.

    litellm itself reads the provider's key from the variables of this process, not from `environment`. `base_url`
    takes the place of the provider's own address. The constructor raises ExtraMissing, NetworkForbidden, and UsageError
    for a provider litellm does not know.
    """

    def __init__(
        self,
        model: str,
        *,
        timeout_s: float,
        environment: Mapping[str, str],
        base_url: str | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        # Without an address, only litellm knows where a request would go.
        if base_url is None:
            forbid_if_offline(f"the provider of {model}", environment)
        url, host = address(base_url, environment) if base_url else ("", "")
        self._base_url = url or None
        self.name = model
        self._timeout_s = timeout_s
        self._backoff = backoff or Backoff()
        self._redactor = Redactor({*secrets_in(environment), *secrets_in(os.environ)})
        self._litellm = _litellm()
        self._pool = Pool(lambda: pool_client(loopback=is_loopback(host)))
        if not self._provider_known():
            raise UsageError(
                f"{printable(model)} does not start with a provider that litellm knows",
                hint="write it like anthropic/NAME; with --base-url a name with slashes goes to that server as it is",
            )

    def complete(self, request: Request, *, within_s: float | None = None) -> Reply:
        """Ask the provider; see `Client.complete`."""
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
        """The address, or the name of the provider, which holds no secret."""
        return self._base_url or self.name.partition("/")[0]

    def _attempt(self, request: Request, left_s: float) -> Reply | Failure:
        body = chat_body(request)
        if "seed" in body and not self._knows("seed"):
            del body["seed"]  # a wish; litellm would refuse the whole request
        if self._base_url:
            body["api_base"] = self._base_url
        if "tools" in body:
            # Else litellm looks for its MCP gateway, and needs a package for that which is not installed.
            body["_skip_mcp_handler"] = True
        try:
            with self._redactor.over_logs(), self._pool.lent() as client:
                return self._asked(body, request, left_s, Exchange(client, self._redactor))
        except ResponseRefused as refused:
            return response_failure(refused, self._redactor)

    def _asked(self, body: dict[str, Any], request: Request, left_s: float, exchange: Exchange) -> Reply | Failure:
        try:
            with exchange.used():
                response = self._litellm.completion(
                    model=self.name,
                    max_tokens=request.max_output_tokens,
                    timeout=left_s + 1,
                    num_retries=0,  # of the SDKs below it too
                    **body,
                )
        except Exception as error:  # noqa: BLE001 - litellm lets through whatever its code for a provider raises
            return self._failure(error, request, exchange)
        return self._reply(response, request)

    def _knows(self, parameter: str) -> bool:
        try:
            return parameter in (self._litellm.get_supported_openai_params(model=self.name) or ())
        except Exception:  # noqa: BLE001 - as above
            return False

    def _reply(self, response: Any, request: Request) -> Reply | Failure:
        outcome = read_completion(response.model_dump(warnings=False), request, self._redactor)
        if isinstance(outcome, Failure):
            return outcome
        cost = getattr(response, "_hidden_params", {}).get("response_cost")
        usage = outcome.usage.model_copy(update={"cost_usd": float(cost) if cost and cost > 0 else None})
        return outcome.model_copy(update={"usage": usage, "model": outcome.model or self.name})

    def _failure(self, error: Exception, request: Request, exchange: Exchange) -> Failure:
        """By what really came back, if anything did; litellm's own words are for what it did not even send."""
        import openai

        text = str(error)
        refusal = exchange.refusal
        status = refusal.status_code if refusal is not None else getattr(error, "status_code", None)
        missing = self._missing_keys()
        if _NO_KEY.search(text) or (status == 401 and missing):
            return Failure(
                KeyMissing,
                f"no API key for {self.name}",
                f"set {' or '.join(missing) or 'the key variable of the provider'} in the environment",
            )
        if exchange.failure is not None:
            if exchange.failure.can_pass:
                self._pool.drop()  # a body shorter than it should be: its rest may come as the next answer
            return exchange.failure
        if exchange.answered:
            return Failure(
                EndpointRefused,
                f"the endpoint answered with something that litellm cannot read: "
                f"{self._redactor.excerpt(text.partition('Traceback')[0])}",
                "check --base-url and the model; that is litellm's own message",
            )
        if exchange.lost or (refusal is None and isinstance(error, openai.APIConnectionError)):
            return Failure(
                EndpointUnreachable,
                f"no answer for {self.name}: {self._redactor.excerpt(exchange.lost or text)}",
                "check the network, and the provider's status page",
                can_pass=True,
            )
        if isinstance(status, int):
            said, headers = (text, {}) if refusal is None else (refusal.text, refusal.headers)
            keys = "the key variable of the provider"
            return status_failure(
                status, said, headers, request=request, model=self.name, keys=keys, redactor=self._redactor
            )
        return Failure(
            EndpointRefused,
            f"litellm failed with {type(error).__name__}: {self._redactor.excerpt(text)}",
            "if the provider offers an OpenAI-compatible address, give it with --base-url",
        )

    def _missing_keys(self) -> list[str]:
        """The key variables that litellm would read for this provider and that are not set."""
        missing = self._litellm.validate_environment(self.name)["missing_keys"]
        return [name for name in missing if name.endswith(("_KEY", "_TOKEN", "_SECRET"))]

    def _provider_known(self) -> bool:
        try:
            self._litellm.get_llm_provider(self.name)
        except Exception:  # noqa: BLE001 - litellm's own class for this has changed between versions
            return False
        return True


def _litellm() -> Any:
    # Set before the import, which otherwise downloads price lists and headers, and reads a .env file (which could name
    # another address for a provider) from the current directory upwards.
    for variable in (
        "LITELLM_LOCAL_MODEL_COST_MAP",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS",
        "LITELLM_LOCAL_BLOG_POSTS",
    ):
        os.environ[variable] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    _hush()  # where the root logger shows all, the import prints to stdout
    try:
        import litellm
    except ImportError:
        litellm = None
    if litellm is None:
        raise ExtraMissing(
            "a model named provider/model needs litellm, which is not installed",
            hint="pip install 'model-patch-planner[litellm]' (in a checkout: '.[litellm]'), or give --base-url",
        )
    litellm.suppress_debug_info = True  # advertisements on stdout, with every exception
    _hush()  # LITELLM_LOG has set the levels anew
    install(litellm)
    return litellm


def _hush() -> None:
    # It prints the bodies of answers to stderr.
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
