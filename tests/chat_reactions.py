"""What a test's chat server answers with; see chat_server, which plays these and documents them."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Answer",
    "BigHeaders",
    "Bomb",
    "Calls",
    "ChunkedCut",
    "Cut",
    "Drip",
    "Drop",
    "Endless",
    "Hang",
    "Item",
    "Json",
    "Lie",
    "Raw",
    "Reaction",
    "Received",
    "Redirect",
    "Status",
    "Trickle",
    "compressed_zeros",
]

_USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True)
class Received:
    """One request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    at: float
    """time.monotonic() when it had been read."""


@dataclass(frozen=True)
class Json:
    """Any JSON value with status 200."""

    value: Any


@dataclass(frozen=True)
class Answer:
    """A chat completion."""

    text: str | None
    finish_reason: str | None = "stop"
    model: str = "scripted-model"
    refusal: str | None = None
    usage: Any = field(default_factory=lambda: dict(_USAGE))
    reasoning: str | None = None

    def value(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        return _completion(message, self.finish_reason, self.model, self.usage)


@dataclass(frozen=True)
class Calls:
    """A chat completion with tool calls; see the module's docstring."""

    calls: Sequence[tuple[str | None, Any]]
    text: str | None = None
    ids: Sequence[str | None] | None = None
    finish_reason: str | None = "tool_calls"
    model: str = "scripted-model"
    as_objects: bool = False
    usage: Any = field(default_factory=lambda: dict(_USAGE))

    def value(self) -> dict[str, Any]:
        ids = [f"call-{number}" for number in range(1, len(self.calls) + 1)] if self.ids is None else self.ids
        calls = [
            {"id": identity, "type": "function", "function": {"name": name, "arguments": self._sent(arguments)}}
            for identity, (name, arguments) in zip(ids, self.calls, strict=True)
        ]
        message = {"role": "assistant", "content": self.text, "tool_calls": calls}
        return _completion(message, self.finish_reason, self.model, self.usage)

    def _sent(self, arguments: Any) -> Any:
        return arguments if isinstance(arguments, str) or self.as_objects else json.dumps(arguments)


def _completion(message: Mapping[str, Any], finish_reason: str | None, model: str, usage: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        **({} if usage is None else {"usage": usage}),
    }


@dataclass(frozen=True)
class Status:
    """Any status. A body that is not a string is sent as JSON."""

    code: int
    body: Any = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raw:
    """These bytes as the body, whatever they are."""

    body: bytes
    content_type: str = "application/json"
    code: int = 200


@dataclass(frozen=True)
class Hang:
    """The request is read and nothing is ever answered, until the server closes."""


@dataclass(frozen=True)
class Trickle:
    """One space every `every_s` seconds, for ever: no single read ever times out."""

    every_s: float = 0.05


@dataclass(frozen=True)
class Cut:
    """A completion whose body ends early; without `length`, nothing in the headers tells so."""

    length: bool = True


@dataclass(frozen=True)
class Drop:
    """The connection is closed without a status line."""


@dataclass(frozen=True)
class Drip:
    """One byte every `every_s` seconds of a completion that is valid JSON so far and never ends."""

    every_s: float = 0.05


@dataclass(frozen=True)
class ChunkedCut:
    """A completion in chunks, of which the last never comes."""


@dataclass(frozen=True)
class Lie:
    """A completion whose Content-Length is `by` bytes off."""

    by: int


@dataclass(frozen=True)
class Redirect:
    """Somewhere else, says the server."""

    code: int
    to: str


@dataclass(frozen=True)
class Bomb:
    """`nbytes` zeros, compressed."""

    nbytes: int = 2**30
    coding: Literal["gzip", "deflate"] = "gzip"
    code: int = 200


@dataclass(frozen=True)
class Endless:
    """A body without end, in chunks, as fast as the client reads."""

    code: int = 200


@dataclass(frozen=True)
class BigHeaders:
    """A completion behind one header line of `nbytes`."""

    nbytes: int = 2**20


Reaction = (
    Json
    | Answer
    | Calls
    | Status
    | Raw
    | Hang
    | Trickle
    | Drip
    | Cut
    | ChunkedCut
    | Lie
    | Drop
    | Redirect
    | Bomb
    | Endless
    | BigHeaders
)
Item = Reaction | Callable[[Received], Reaction]


@functools.cache
def compressed_zeros(nbytes: int, coding: str) -> bytes:
    """Made quickly: after a full flush, a mebibyte compresses to the same bytes again. Only the checksum is wrong."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS + (16 if coding == "gzip" else 0))
    zeros = bytes(2**20)
    first = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (nbytes // len(zeros) - 1) + packer.flush()
