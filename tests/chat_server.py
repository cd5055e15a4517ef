"""A real HTTP server on 127.0.0.1 that speaks chat completions and fails in every way a provider was seen to fail.

    with ChatServer(script=[Status(429, headers={"Retry-After": "1"}), Answer("hello")]) as server:
        ...                          # point the client at server.base_url
        server.requests[0].body      # what was asked, parsed
        server.requests[0].headers   # header names in lower case

One item of the script answers one POST to /v1/chat/completions. An item may also be a function from `Received` to an
item. When the script runs out, the server answers 400 and leaving the `with` block raises AssertionError, unless
`repeat_last=True`. GET /v1/models answers with `models`, which may be an item too.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

__all__ = ["Answer", "ChatServer", "Cut", "Drop", "Hang", "Item", "Json", "Raw", "Received", "Status", "Trickle"]


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
    usage: Mapping[str, int] | None = field(
        default_factory=lambda: {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    )

    def value(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            **({} if self.usage is None else {"usage": dict(self.usage)}),
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


Reaction = Json | Answer | Status | Raw | Hang | Trickle | Cut | Drop
Item = Reaction | Callable[[Received], Reaction]


class ChatServer:
    """Context manager; see the module's docstring."""

    def __init__(
        self,
        script: Sequence[Item],
        *,
        repeat_last: bool = False,
        models: Sequence[str] | Item = ("model-a", "model-b"),
    ) -> None:
        self.script = list(script)
        self.repeat_last = repeat_last
        self.models = models
        self.requests: list[Received] = []
        self.model_requests: list[Received] = []
        self.closing = threading.Event()
        self._excess = 0
        self._lock = threading.Lock()
        self._http = _HTTPServer(("127.0.0.1", 0), _Handler)
        self._http.chat = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        if kind is None and self._excess:
            raise AssertionError(f"{len(self.requests)} requests for a script of {len(self.script)}")

    def reaction(self, received: Received) -> Reaction:
        """What the script says to this request; the request is written down."""
        if received.method == "GET":
            with self._lock:
                self.model_requests.append(received)
            return self._model_list(received)
        with self._lock:
            index = len(self.requests)
            self.requests.append(received)
            if index >= len(self.script) and not self.repeat_last:
                self._excess += 1
                return Status(400, {"error": {"message": "the script of this test server has run out"}})
        item = self.script[min(index, len(self.script) - 1)]
        return item(received) if callable(item) else item

    def _model_list(self, received: Received) -> Reaction:
        if callable(self.models):
            return self.models(received)
        if isinstance(self.models, Sequence):
            return Json({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        return self.models


class _HTTPServer(ThreadingHTTPServer):
    # server_close() waits for the handlers, so that no socket of a test outlives it.
    daemon_threads = False
    block_on_close = True
    chat: ChatServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up; that is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer

    def do_GET(self) -> None:
        self._handle("/v1/models")

    def do_POST(self) -> None:
        self._handle("/v1/chat/completions")

    def _handle(self, path: str) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.partition("?")[0] != path:
            self._send(404, {"Content-Type": "text/plain"}, f"no such path: {self.path}".encode())
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.loads(raw) if raw else None
        self._react(self.server.chat.reaction(Received(self.command, self.path, headers, body, time.monotonic())))

    def _react(self, item: Reaction) -> None:
        json_type = {"Content-Type": "application/json"}
        match item:
            case Json(value):
                self._send(200, json_type, json.dumps(value).encode())
            case Answer():
                self._send(200, json_type, json.dumps(item.value()).encode())
            case Status(code, body, headers):
                kind = {"Content-Type": "text/plain"} if isinstance(body, str) else json_type
                data = body if isinstance(body, str) else json.dumps(body)
                self._send(code, {**kind, **headers}, data.encode())
            case Raw(body, content_type, code):
                self._send(code, {"Content-Type": content_type}, body)
            case Hang():
                self.server.chat.closing.wait()
            case Trickle(every_s):
                self._send(200, json_type, b"", length=10**6)
                while not self.server.chat.closing.wait(every_s):
                    self.wfile.write(b" ")
            case Cut(length):
                data = json.dumps(Answer("a long answer").value()).encode()
                self._send(200, json_type, data[: len(data) // 2], length=len(data) if length else None)
            case Drop():
                self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, code: int, headers: Mapping[str, str], body: bytes, *, length: int | None = -1) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Silent: the tests look at stderr."""
