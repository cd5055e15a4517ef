"""Models named `provider/model`, through litellm (an optional extra)."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from planner.errors import EndpointRefused, EndpointUnreachable, ExtraMissing, KeyMissing, UsageError
from planner.llm.base import Reply, Request
from planner.llm.endpoint import address, forbid_if_offline
from planner.llm.failures import read_completion, status_failure
from planner.llm.redaction import Redactor, printable, secrets_in
from planner.llm.retries import Backoff, Failure, complete_with_retries

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
        self._base_url = address(base_url, environment)[0] if base_url else None
        self.name = model
        self._timeout_s = timeout_s
        self._backoff = backoff or Backoff()
        self._redactor = Redactor({*secrets_in(environment), *secrets_in(os.environ)})
        self._litellm = _litellm()
        if not self._provider_known():
            raise UsageError(
                f"{printable(model)} does not start with a provider that litellm knows",
                hint="write it like anthropic/NAME; with --base-url a name with slashes goes to that server as it is",
            )

    def complete(self, request: Request) -> Reply:
        """Ask the provider; see `Client.complete`."""
        return complete_with_retries(
            lambda left_s: self._attempt(request, left_s),
            timeout_s=self._timeout_s,
            backoff=self._backoff,
            redactor=self._redactor,
        )

    def _attempt(self, request: Request, left_s: float) -> Reply | Failure:
        optional = {"temperature": request.temperature, "api_base": self._base_url}
        with self._redactor.over_logs():
            try:
                response = self._litellm.completion(
                    model=self.name,
                    messages=[message.model_dump() for message in request.messages],
                    max_tokens=request.max_output_tokens,
                    timeout=left_s + 1,
                    num_retries=0,  # of the SDKs below it too
                    **{name: value for name, value in optional.items() if value is not None},
                )
            except Exception as error:  # noqa: BLE001 - litellm lets through whatever its code for a provider raises
                return self._failure(error)
            return self._reply(response)

    def _reply(self, response: Any) -> Reply | Failure:
        outcome = read_completion(response.model_dump(warnings=False), self._redactor)
        if isinstance(outcome, Failure):
            return outcome
        cost = getattr(response, "_hidden_params", {}).get("response_cost")
        usage = outcome.usage.model_copy(update={"cost_usd": float(cost) if cost else None})
        return outcome.model_copy(update={"usage": usage, "model": outcome.model or self.name})

    def _failure(self, error: Exception) -> Failure:
        import openai

        text = str(error)
        status = getattr(error, "status_code", None)
        missing = self._missing_keys()
        if _NO_KEY.search(text) or (status == 401 and missing):
            return Failure(
                KeyMissing,
                f"no API key for {self.name}",
                f"set {' or '.join(missing) or 'the key variable of the provider'} in the environment",
            )
        # litellm files lost connections under status 500.
        if isinstance(error, openai.APIConnectionError) or "Connection error" in text:
            return Failure(
                EndpointUnreachable,
                f"no answer for {self.name}: {self._redactor.excerpt(text)}",
                "check the network, and the provider's status page",
                can_pass=True,
            )
        if isinstance(status, int):
            headers = getattr(error, "litellm_response_headers", None) or {}
            keys = "the key variable of the provider"
            return status_failure(status, text, headers, keys=keys, redactor=self._redactor)
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
    try:
        import litellm
    except ImportError:
        litellm = None
    if litellm is None:
        raise ExtraMissing(
            "a model named provider/model needs litellm, which is not installed",
            hint="pip install 'model-patch-planner[litellm]' (in a checkout: '.[litellm]'), or give --base-url",
        )
    # It prints advertisements to stdout with every exception, and the bodies of answers to stderr.
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm
