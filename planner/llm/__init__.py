"""Text in, text out: providers, retries and redaction. Knows nothing of plans.

Importing this package imports none of openai, litellm, httpx and tenacity; making a client does.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.errors import UsageError
from planner.llm.base import AnswerShape, Client, Message, Reply, Request, Rung, Tool, ToolCall, Usage
from planner.llm.kept_answers import KeptAnswers
from planner.llm.ladder import Ladder
from planner.llm.litellm_provider import LiteLLMClient
from planner.llm.openai_compatible import OpenAICompatibleClient
from planner.llm.prices import Price, cost_of, price_of
from planner.llm.redacting import RedactingClient
from planner.llm.redaction import redact, secrets_in
from planner.llm.retries import Backoff
from planner.llm.scripted import ScriptedClient

__all__ = [
    "AnswerShape",
    "Backoff",
    "Client",
    "KeptAnswers",
    "Ladder",
    "LiteLLMClient",
    "Message",
    "OpenAICompatibleClient",
    "Price",
    "RedactingClient",
    "Reply",
    "Request",
    "Rung",
    "ScriptedClient",
    "Tool",
    "ToolCall",
    "Usage",
    "client_for",
    "cost_of",
    "price_of",
    "redact",
    "secrets_in",
]


def client_for(model: str, *, base_url: str | None, timeout_s: float, environment: Mapping[str, str]) -> Client:
    """The client for `model`; `timeout_s` bounds one `complete`, retries and waits included.

    With `base_url` the name goes to that endpoint as it is. Without one, `NAME` and `openai/NAME` go to OpenAI (or
    OPENAI_BASE_URL), and `provider/NAME` goes through litellm.

    Opens no connection. Raises UsageError (no model, no address, unknown provider), ExtraMissing (litellm),
    KeyMissing and NetworkForbidden.
    """
    provider, slash, rest = model.partition("/")
    plain = base_url is not None or not slash
    name = model if plain else rest
    if not name.strip():
        raise UsageError("no model is named", hint="name one: NAME, or provider/NAME")
    if plain or provider == "openai":
        return OpenAICompatibleClient(name, base_url=base_url, timeout_s=timeout_s, environment=environment)
    return LiteLLMClient(model, timeout_s=timeout_s, environment=environment)
