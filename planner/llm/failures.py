"""Reads what an endpoint says when it gives no answer: an HTTP status, or a response that is not read on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from planner.errors import EndpointRefused, FeatureRefused
from planner.llm.base import Request
from planner.llm.redaction import Redactor
from planner.llm.responses import ResponseRefused
from planner.llm.retries import Failure, retry_after_s
from planner.strict_json import JsonRefused, loads

__all__ = ["refused_feature", "response_failure", "said", "said_in", "status_failure"]

_RETRIED = frozenset({408, 409, 429})

# How endpoints say that they do not know a feature; none has a code for it.
_FEATURE_STATUSES = frozenset({400, 404, 422, 500, 501})
_OF_TOOLS = re.compile(r"\btools?\b|tool[_ -]?(?:choice|calls?|use)|\bfunctions?\b|function[_ -]?call")
_OF_FORMAT = re.compile(
    r"response[_ ]?format|json[_ ]?schema|json[_ ]?object|json mode|structured|mime type|generate json"
)
_PERHAPS_OF_FORMAT = re.compile(r"grammar|\bstrict\b|schema")
_OF_LENGTH = re.compile(
    r"context[_ ](?:length|window|size)|exceed.{0,40}context|too long|too large|maximum .{0,20}tokens"
)
# A 404 may speak of a model, a 500 of anything.
_REFUSES = re.compile(
    r"support|requir|unavailable|available|enable|implement|invalid|unknown|unrecogni[sz]ed|pars|grammar|not allowed"
)


def status_failure(
    status: int, text: str, headers: Mapping[str, str], *, request: Request, model: str, keys: str, redactor: Redactor
) -> Failure:
    """The failure that an HTTP status other than 2xx means; `keys` names where the key came from.

    Retried are only those that can pass by themselves: 408, 409, 429 and 5xx, unless they say that the endpoint does
    not know what `request` relies on.
    """
    message = said_in(text)
    # OpenAI answers 429 to an account without credit too; waiting does not fill it.
    out_of_credit = "insufficient_quota" in text
    excerpt = redactor.excerpt(message)
    if feature := refused_feature(status, message, request, model):
        return Failure(
            FeatureRefused,
            f"the endpoint answered {status}: {excerpt}",
            f"it does not know {feature} as it was asked for; use another model or endpoint",
            feature=feature,
        )
    return Failure(
        EndpointRefused,
        f"the endpoint answered {status}" + (f": {excerpt}" if excerpt else ""),
        _status_hint(status, message.lower(), keys, out_of_credit),
        can_pass=(status in _RETRIED or status >= 500) and not out_of_credit,
        retry_after_s=retry_after_s(headers.get("retry-after"), headers.get("retry-after-ms")),
    )


def refused_feature(status: int, message: str, request: Request, model: str) -> str:
    """Which feature of `request` an endpoint's error `message` is about; empty where it is about none.

    Gives tools, or the rung of the request's shape. `model` is the model's name, which proves nothing.
    """
    if status not in _FEATURE_STATUSES:
        return ""
    text = re.sub(rf"(?<!\w){re.escape(model.lower())}(?!\w)", "", message.lower())  # "m" is in many words
    if _OF_LENGTH.search(text) or (status not in (400, 422) and not _REFUSES.search(text)):
        return ""
    rung = request.rung if request.shape is not None else "text"
    formatted = rung in ("json_schema", "json_object")
    if formatted and _OF_FORMAT.search(text):
        return rung
    if (request.tools or rung == "tool") and _OF_TOOLS.search(text):
        # Of both, the choice that is forced is the one that fewer endpoints know.
        return "tool" if rung == "tool" and (not request.tools or "choice" in text) else "tools"
    return rung if rung != "text" and _PERHAPS_OF_FORMAT.search(text) else ""


def response_failure(refused: ResponseRefused, redactor: Redactor) -> Failure:
    """The failure of a response that was not read on."""
    return Failure(
        refused.kind, redactor.excerpt(refused.what), redactor.excerpt(refused.hint), can_pass=refused.can_pass
    )


def _status_hint(status: int, message: str, keys: str, out_of_credit: bool) -> str:
    if out_of_credit:
        return "the account has no credit left"
    if status in (401, 403):
        return f"check {keys}: the endpoint does not accept it, or not for this model"
    if status == 404:
        return "check the model's name, and that --base-url ends where the server's API starts (often /v1)"
    if status in (400, 413, 422) and _OF_LENGTH.search(message):
        return "the prompt is too long for this model; ask for less, or use a model with a longer context"
    if status == 429:
        return "the endpoint limits the rate of requests; wait, or use another model"
    if status >= 500 or status in _RETRIED:
        return "the endpoint has trouble of its own; try again later"
    return "the endpoint does not accept the request; its message says why"


def said_in(text: str) -> str:
    """The human part of an error body, or all of it where it is no JSON."""
    try:
        return said(loads(text))
    except JsonRefused:
        return text


def said(value: Any) -> str:
    """The human part of a parsed error body, wherever the provider put it."""
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return value if isinstance(value, str) else repr(value)
