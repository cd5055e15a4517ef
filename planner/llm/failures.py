"""Reads what an endpoint sent back: a chat completion becomes a `Reply`, anything else a `Failure`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import AnswerUnusable, EndpointRefused
from planner.llm.base import Reply, Usage
from planner.llm.redaction import Redactor
from planner.llm.retries import Failure, retry_after_s
from planner.strict_json import JsonRefused, loads

__all__ = ["read_body", "read_completion", "status_failure"]

_RETRIED = frozenset({408, 409, 429})
# "length" is OpenAI's word, "max_tokens" Anthropic's, which some gateways pass on.
_CUT = frozenset({"length", "max_tokens"})
_FILTERED = frozenset({"content_filter", "refusal", "safety"})


def read_body(body: bytes, redactor: Redactor) -> Reply | Failure:
    """Read the body of a 200, whatever its declared type: some servers send JSON as text/plain."""
    text = body.decode("utf-8-sig", errors="replace")
    try:
        value = loads(text)
    except JsonRefused as error:
        start = text.strip()
        if start.startswith("{") and not start.endswith("}"):
            # The connection was closed early and no Content-Length told so.
            return Failure(
                EndpointRefused, "the answer's body was cut short", "the connection broke; try again", can_pass=True
            )
        return Failure(
            EndpointRefused,
            f"the endpoint answered 200 with something that is not JSON ({redactor.excerpt(str(error))}): "
            f"{redactor.excerpt(text) or 'nothing'}",
            "check --base-url: a login page, a proxy or a web server answers there, not a chat-completions API",
        )
    return read_completion(value, redactor)


def read_completion(value: Any, redactor: Redactor) -> Reply | Failure:
    """Check that `value` is a whole chat completion. Why it ended is looked at before what it says."""
    if not isinstance(value, dict):
        return _no_completion(f"a JSON {type(value).__name__} instead of an object")
    if value.get("error"):
        return Failure(
            EndpointRefused,
            f"the endpoint answered 200 with an error: {redactor.excerpt(_said(value))}",
            "that is the provider's own message; see its documentation",
        )
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return _no_completion("an answer without choices")
    reason, message = choices[0].get("finish_reason"), choices[0].get("message")
    if not isinstance(message, dict):
        return _no_completion("a choice without a message")
    text = message.get("content")
    if reason in _CUT:
        return Failure(
            AnswerUnusable,
            "the answer was cut off at the limit of output tokens",
            "raise --max-output-tokens (hidden reasoning counts too), or ask for less",
        )
    refusal = message.get("refusal") or (message.get("provider_specific_fields") or {}).get("refusal")
    if reason in _FILTERED or refusal:
        said = f": {redactor.excerpt(refusal)}" if isinstance(refusal, str) else ""
        return Failure(
            AnswerUnusable, f"the model or a filter refused to answer{said}", "rephrase the task, or use another model"
        )
    # Some servers (older llama.cpp and proxies) give no reason at all with a whole answer, so a text without a reason
    # is taken; a text that was in truth cut off then fails as a plan, because it is read strictly. Any other reason
    # says that the text is not the answer.
    if reason not in ("stop", None, ""):
        return Failure(
            AnswerUnusable,
            f"the answer ended for the reason {redactor.excerpt(str(reason), 60)!r}, not because it was complete",
            "use another model or endpoint; tools and streaming are not used here",
        )
    if not isinstance(text, str) or not text.strip():
        return Failure(
            AnswerUnusable,
            "the answer holds no text",
            "hidden reasoning may have used up the limit: raise --max-output-tokens, or use another model",
        )
    named = value.get("model")
    return Reply(
        text=text,
        model=redactor.excerpt(named) if isinstance(named, str) else "",
        finish_reason=reason or "",
        usage=_usage(value.get("usage")),
        attempts=1,
    )


def status_failure(status: int, text: str, headers: Mapping[str, str], *, keys: str, redactor: Redactor) -> Failure:
    """The failure that an HTTP status other than 2xx means; `keys` names where the key came from.

    Retried are only those that can pass by themselves: 408, 409, 429 and 5xx.
    """
    said = _said_in(text)
    # OpenAI answers 429 to an account without credit too; waiting does not fill it.
    out_of_credit = "insufficient_quota" in text
    excerpt = redactor.excerpt(said)
    return Failure(
        EndpointRefused,
        f"the endpoint answered {status}" + (f": {excerpt}" if excerpt else ""),
        _status_hint(status, said.lower(), headers, keys, out_of_credit, redactor),
        can_pass=(status in _RETRIED or status >= 500) and not out_of_credit,
        retry_after_s=retry_after_s(headers.get("retry-after")),
    )


def _status_hint(
    status: int, said: str, headers: Mapping[str, str], keys: str, out_of_credit: bool, redactor: Redactor
) -> str:
    if out_of_credit:
        return "the account has no credit left"
    if status in (401, 403):
        return f"check {keys}: the endpoint does not accept it, or not for this model"
    if status == 404:
        return "check the model's name, and that --base-url ends where the server's API starts (often /v1)"
    if 300 <= status < 400:
        return f"redirects are not followed; it points to {redactor.excerpt(headers.get('location', 'nowhere'))}"
    if status in (400, 413, 422) and ("context" in said or "too long" in said or "too large" in said):
        return "the prompt is too long for this model; ask for less, or use a model with a longer context"
    if status == 429:
        return "the endpoint limits the rate of requests; wait, or use another model"
    if status >= 500 or status in _RETRIED:
        return "the endpoint has trouble of its own; try again later"
    return "the endpoint does not accept the request; its message says why"


def _no_completion(what: str) -> Failure:
    return Failure(
        EndpointRefused,
        f"the endpoint answered 200 with {what}, which is no chat completion",
        "check --base-url and the model; the endpoint must speak the chat-completions API",
    )


def _said_in(text: str) -> str:
    try:
        return _said(loads(text))
    except JsonRefused:
        return text


def _said(value: Any) -> str:
    """The human part of an error body, wherever the provider put it."""
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return value if isinstance(value, str) else repr(value)


def _usage(value: Any) -> Usage:
    counts = value if isinstance(value, dict) else {}

    def count(name: str) -> int:
        number = counts.get(name)
        return number if isinstance(number, int) and number >= 0 else 0

    return Usage(input_tokens=count("prompt_tokens"), output_tokens=count("completion_tokens"), cost_usd=None)
