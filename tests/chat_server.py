"""A real HTTP server on 127.0.0.1 that speaks chat completions and fails in every way a provider was seen to fail.

    with ChatServer(script=[Status(429, headers={"Retry-After": "1"}), Answer("hello")]) as server:
        ...                          # point the client at server.base_url
        server.requests[0].body      # what was asked, parsed
        server.requests[0].headers   # header names in lower case

One item of the script answers one POST to /v1/chat/completions. An item may also be a function from `Received` to an
item. When the script runs out, the server answers 400 and leaving the `with` block raises AssertionError, unless
`repeat_last=True`. GET /v1/models answers with `models`, which may be an item too.

    Answer(text, ...)      a completion; `reasoning` stands beside the text, as reasoning models have it
    Calls([(name, arguments), ...], text=None, ids=None)
                           a completion with tool calls. Arguments are a dict, or a str that is sent as it is (broken
                           JSON); with `as_objects` dicts are sent as objects, as Ollama does. `ids` may repeat, be
                           empty or None; by default they are call-1, call-2, ...
    Json, Raw, Status      any value, any bytes, any status
    Redirect(code, to)     a status with a Location
    Hang, Drop             silence; a closed connection
    Trickle, Drip          one space, or one byte of JSON that never ends, now and then
    Cut, ChunkedCut, Lie   a body that ends early, with or without a word of it; a Content-Length that is wrong
    Bomb(nbytes, coding)   zeros, compressed: 1 MB on the wire is 1 GiB decoded
    Endless()              a body without end, as fast as the client reads
    BigHeaders(nbytes)     one header line of that length

Connections are kept open, as real servers keep them; `connections` counts those that were accepted. A request in the
absolute form that proxies get (`POST http://host/v1/chat/completions`) is answered like any other, so a server can
stand in for a proxy; `Received.path` shows it as it came. `ChatServer(..., certificate=PEM)` speaks TLS, and
`path="/v1/messages"` answers there instead, with whatever the script holds.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from chat_reactions import (
    Answer,
    BigHeaders,
    Bomb,
    Calls,
    ChunkedCut,
    Cut,
    Drip,
    Drop,
    Endless,
    Hang,
    Item,
    Json,
    Lie,
    Raw,
    Reaction,
    Received,
    Redirect,
    Status,
    Trickle,
    compressed_zeros,
)

__all__ = [
    "Answer",
    "BigHeaders",
    "Bomb",
    "Calls",
    "ChatServer",
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
    "Received",
    "Redirect",
    "Status",
    "Trickle",
]


class ChatServer:
    """Context manager; see the module's docstring."""

    def __init__(
        self,
        script: Sequence[Item],
        *,
        repeat_last: bool = False,
        models: Sequence[str] | Item = ("model-a", "model-b"),
        certificate: Path | None = None,
        path: str = "/v1/chat/completions",
    ) -> None:
        self.script = list(script)
        self.repeat_last = repeat_last
        self.models = models
        self.path = path
        self.requests: list[Received] = []
        self.model_requests: list[Received] = []
        self.closing = threading.Event()
        self._excess = 0
        self._lock = threading.Lock()
        self._http = _HTTPServer(("127.0.0.1", 0), _Handler)
        self._http.chat = self
        self._scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def base_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return len(self._http.accepted)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.hang_up()
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

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.accepted: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.accepted.append(connection)
        return connection, address

    def hang_up(self) -> None:
        """Clients keep connections open; their handlers wait for a next request until this."""
        for connection in self.accepted:
            with contextlib.suppress(OSError):  # closed long ago
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up; that is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer
    protocol_version = "HTTP/1.1"  # connections are kept open
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._handle("/v1/models")

    def do_POST(self) -> None:
        self._handle(self.server.chat.path)

    def _handle(self, path: str) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if urlsplit(self.path).path != path:
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
            case Answer() | Calls():
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
            case ChunkedCut():
                data = json.dumps(Answer("a long answer").value()).encode()
                self._send(200, {**json_type, "Transfer-Encoding": "chunked"}, b"", length=None)
                self._chunk(data[: len(data) // 2])
                self.close_connection = True
            case Lie(by):
                data = json.dumps(Answer("a long answer").value()).encode()
                self._send(200, json_type, data, length=len(data) + by)
                self.close_connection = by > 0
            case Drip(every_s):
                self._send(200, {**json_type, "Transfer-Encoding": "chunked"}, b"", length=None)
                self._chunk(b'{"choices": [')
                while not self.server.chat.closing.wait(every_s):
                    self._chunk(b"1")
            case Redirect(code, to):
                self._send(code, {"Location": to}, b"")
            case Bomb(nbytes, coding, code):
                self._send(code, {**json_type, "Content-Encoding": coding}, compressed_zeros(nbytes, coding))
            case Endless(code):
                self._send(code, {**json_type, "Transfer-Encoding": "chunked"}, b"", length=None)
                while not self.server.chat.closing.is_set():
                    self._chunk(b" " * 2**16)
            case BigHeaders(nbytes):
                data = json.dumps(Answer("behind a header").value()).encode()
                self._send(200, {**json_type, "X-Big": "x" * nbytes}, data)
            case Drop():
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, code: int, headers: Mapping[str, str], body: bytes, *, length: int | None = -1) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
            # The body will be shorter, and the client can only tell by the end of the connection.
            self.close_connection |= length > len(body)
        elif "Transfer-Encoding" not in headers:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *args: Any) -> None:
        """Silent: the tests look at stderr."""
