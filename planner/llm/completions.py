"""Reads what an endpoint answered: a chat completion becomes a `Reply`, anything else a `Failure`.

Providers bend the format in many ways. What can be understood without a guess is taken; what would have to be guessed
is a failure with its reason. What a model wrote wrongly (broken JSON in the arguments of a call) is no failure here: it
is passed on as text, for whoever talks with the model to answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from planner.errors import AnswerUnusable, EndpointRefused
from planner.llm.base import Reply, Request, ToolCall, Usage
from planner.llm.failures import said
from planner.llm.redaction import Redactor
from planner.llm.retries import Failure
from planner.strict_json import JsonRefused, loads

__all__ = ["MOST_CALLS", "read_body", "read_completion", "tidied"]

MOST_CALLS = 32
"""Tool calls in one answer: beyond this, a model repeats itself."""

# "length" is OpenAI's word, "max_tokens" Anthropic's, which some gateways pass on.
_CUT = frozenset({"length", "max_tokens"})
_FILTERED = frozenset({"content_filter", "refusal", "safety"})
_CALLED = frozenset({"tool_calls", "function_call"})
# Of characters in a body; each value needs one of them, so this bounds the memory that a small body can ask for.
_MOST = {"{": 200_000, "[": 200_000, ":": 500_000, ",": 1_000_000}
_REASONING = ("reasoning_content", "reasoning")


def read_body(body: bytes, request: Request, redactor: Redactor) -> Reply | Failure:
    """Read the body of a 200, whatever its declared type: some servers send JSON as text/plain."""
    value = _parsed(body, redactor)
    return value if isinstance(value, Failure) else read_completion(value, request, redactor)


def tidied(body: bytes, *, may_call: bool, redactor: Redactor) -> bytes | Failure:
    """The body of a 200 as OpenAI would have written it: one choice, texts and counts of the right types, unique ids.

    For readers behind this one that take less. `may_call` says that the request offered tools.
    """
    value = _parsed(body, redactor)
    if isinstance(value, Failure):
        return value
    whole = _whole(value, may_call, redactor)
    if isinstance(whole, Failure):
        return whole
    if failure := whole.without_text():
        return failure
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in whole.calls
    ]
    left_out = ("tool_calls", "function_call", "content", "role")
    message = {name: part for name, part in whole.message.items() if name not in left_out}
    message |= {"role": "assistant", "content": whole.text or None} | ({"tool_calls": calls} if calls else {})
    usage = _usage(value.get("usage"))
    counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
    tidy = {
        "id": "",
        "created": 0,
        **value,  # some readers insist on fields of their provider's own
        "object": "chat.completion",
        "model": whole.model,
        "choices": [{"index": 0, "message": message, "finish_reason": whole.reason or "stop"}],
        "usage": {**counts, "total_tokens": usage.input_tokens + usage.output_tokens},
    }
    return json.dumps(tidy).encode()


def _parsed(body: bytes, redactor: Redactor) -> Any | Failure:
    text = body.decode("utf-8-sig", errors="replace")
    try:
        return loads(text, most=_MOST)
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


def read_completion(value: Any, request: Request, redactor: Redactor) -> Reply | Failure:
    """Check that `value` is a whole chat completion. Why it ended is looked at before what it says."""
    answer_tool = request.shape.name if request.shape is not None and request.rung == "tool" else None
    whole = _whole(value, bool(request.tools) or answer_tool is not None, redactor)
    if isinstance(whole, Failure):
        return whole
    answers = [call for call in whole.calls if call.name == answer_tool]
    if answers:
        # The answer is there; what else was to be looked up no longer matters.
        whole = replace(whole, text=answers[0].arguments, calls=())
    if failure := whole.without_text():
        return failure
    return Reply(
        text=whole.text,
        tool_calls=whole.calls,
        model=whole.model,
        finish_reason=whole.reason,
        usage=_usage(value.get("usage")),
        attempts=1,
        rung=request.rung if request.shape is not None else "text",
    )


@dataclass(frozen=True)
class _Whole:
    """A completion that ended well."""

    message: dict[str, Any]
    text: str
    calls: tuple[ToolCall, ...]
    reason: str
    model: str

    def without_text(self) -> Failure | None:
        return None if self.text.strip() or self.calls else _no_text(self.message)


def _whole(value: Any, may_call: bool, redactor: Redactor) -> _Whole | Failure:
    if not isinstance(value, dict):
        return _no_completion(f"a JSON {type(value).__name__} instead of an object")
    if value.get("error"):
        return Failure(
            EndpointRefused,
            f"the endpoint answered 200 with an error: {redactor.excerpt(said(value))}",
            "that is the provider's own message; see its documentation",
        )
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return _no_completion("an answer without choices")
    reason, message = choices[0].get("finish_reason"), choices[0].get("message")
    if not isinstance(message, dict):
        return _no_completion("a choice without a message")
    if failure := _ended_badly(reason, message, may_call, redactor):
        return failure
    calls = _calls(message) if may_call else ()
    if isinstance(calls, Failure):
        return calls
    named = value.get("model")
    model = redactor.excerpt(named) if isinstance(named, str) else ""
    return _Whole(message, _text(message.get("content")), calls, reason or "", model)


def _ended_badly(reason: Any, message: dict[str, Any], may_call: bool, redactor: Redactor) -> Failure | None:
    word = reason if isinstance(reason, str) else None
    if word in _CUT:
        return Failure(
            AnswerUnusable,
            "the answer was cut off at the limit of output tokens",
            "raise --max-output-tokens (hidden reasoning counts too), or ask for less",
        )
    more = message.get("provider_specific_fields")
    refusal = message.get("refusal") or (more.get("refusal") if isinstance(more, dict) else None)
    if word in _FILTERED or refusal:
        why = f": {redactor.excerpt(refusal)}" if isinstance(refusal, str) else ""
        return Failure(
            AnswerUnusable, f"the model or a filter refused to answer{why}", "rephrase the task, or use another model"
        )
    # Some servers (older llama.cpp and proxies) give no reason at all with a whole answer, so a text without a reason
    # is taken; a text that was in truth cut off then fails as a plan, because it is read strictly. Any other reason
    # says that the text is not the answer.
    if reason in ("stop", None, "") or (may_call and word in _CALLED):
        return None
    return Failure(
        AnswerUnusable,
        f"the answer ended for the reason {redactor.excerpt(str(reason), 60)!r}, not because it was complete",
        "use another model or endpoint; no stream was asked for, and no tools beside those offered",
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in ("text", None)]
    return "".join(text for text in texts if isinstance(text, str))


def _calls(message: dict[str, Any]) -> tuple[ToolCall, ...] | Failure:
    listed = message.get("tool_calls") or []
    if not listed and message.get("function_call"):
        listed = [{"function": message["function_call"]}]  # OpenAI's own form before tool_calls
    if not isinstance(listed, list):
        return _bad_call(f"tool calls as {type(listed).__name__}, not as a list")
    if len(listed) > MOST_CALLS:
        return _bad_call(f"{len(listed)} tool calls at once; at most {MOST_CALLS} are taken")
    calls: list[ToolCall] = []
    given = [call.get("id") if isinstance(call, dict) else None for call in listed]
    taken = {identity for identity in given if isinstance(identity, str)}
    used: set[str] = set()
    for call, identity in zip(listed, given, strict=True):
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name.strip():
            return _bad_call("a tool call without a name")
        if not isinstance(identity, str) or not identity.strip() or identity in used:
            identity = next(new for number in range(1, 3 * MOST_CALLS) if (new := f"call_{number}") not in taken)
            taken.add(identity)
        used.add(identity)
        calls.append(ToolCall(id=identity, name=name, arguments=_arguments(function.get("arguments"))))
    return tuple(calls)


def _arguments(value: Any) -> str:
    if isinstance(value, str):
        return value
    # Ollama and others send the object itself; none at all is how some say that a tool takes none.
    return "{}" if value is None else json.dumps(value, ensure_ascii=False)


def _bad_call(what: str) -> Failure:
    return Failure(
        AnswerUnusable, f"the answer holds {what}", "use another model or endpoint, or ask without tools: --no-tools"
    )


def _no_text(message: dict[str, Any]) -> Failure:
    if any(isinstance(message.get(name), str) and message[name].strip() for name in _REASONING):
        return Failure(
            AnswerUnusable,
            "the answer holds reasoning and no text",
            "the model thought and did not answer: raise --max-output-tokens, lower its reasoning effort at the "
            "server, or use another model",
        )
    return Failure(
        AnswerUnusable,
        "the answer holds no text",
        "hidden reasoning may have used up the limit: raise --max-output-tokens, or use another model",
    )


def _no_completion(what: str) -> Failure:
    return Failure(
        EndpointRefused,
        f"the endpoint answered 200 with {what}, which is no chat completion",
        "check --base-url and the model; the endpoint must speak the chat-completions API",
    )


def _usage(value: Any) -> Usage:
    counts = value if isinstance(value, dict) else {}

    def count(name: str) -> int:
        number = counts.get(name)
        return number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else 0

    return Usage(input_tokens=count("prompt_tokens"), output_tokens=count("completion_tokens"), cost_usd=None)
