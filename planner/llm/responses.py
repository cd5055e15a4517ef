"""Bounds on what an endpoint may send: how much, for how long, in which coding, and never a redirect.

A body is decoded here in small pieces, because the HTTP libraries decode a whole read at once, and a compressed
megabyte can hold a gigabyte. The rule is a response hook (`guard`), so that the library keeps its own handling of
proxies and certificates, and it fits httpx and httpx2 alike.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

from planner.errors import AnalystFailed, EndpointRefused, EndpointUnreachable

__all__ = ["ACCEPTED_CODINGS", "LARGEST_BODY", "ResponseRefused", "guard", "refusal_in"]

LARGEST_BODY = 16 * 2**20
"""Bytes, decoded: a plan is some ten thousand, so this is far beyond every honest answer."""
ACCEPTED_CODINGS = "gzip, deflate"
"""What is sent as Accept-Encoding."""

_PIECE = 2**16
_ZLIB = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class ResponseRefused(Exception):
    """The response is not read on: what it is, and what a user can do. Ends inside this package, as a `Failure`."""

    def __init__(
        self, what: str, hint: str, *, kind: type[AnalystFailed] = EndpointRefused, can_pass: bool = False
    ) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.kind = kind
        self.can_pass = can_pass


def guard(response: Any) -> None:
    """Response hook of an httpx (or httpx2) client: refuse what cannot be an answer, and bound the body of the rest.

    Raises ResponseRefused here or while the body is read; the libraries wrap it, `refusal_in` finds it again.
    """
    if 300 <= response.status_code < 400:
        # Followed, it could leave this machine, or carry the prompt and the key to somebody who was not named.
        to = response.headers.get("location", "nowhere")
        raise ResponseRefused(
            f"the endpoint answered {response.status_code}", f"redirects are not followed; it points to {to}"
        )
    if response.status_code < 300 and _media_type(response) == "text/event-stream":
        raise ResponseRefused(
            "the endpoint answered with a stream of events, which is not JSON",
            "no stream was asked for; a gateway in between forces one: switch it off there, or use another endpoint",
        )
    coding = response.headers.pop("content-encoding", "").strip().lower()
    response.headers.pop("content-length", None)  # of the coded body; what it says was checked on the wire
    limits = response.request.extensions.get("timeout") or {}
    seconds = limits.get("read")
    deadline = None if seconds is None else time.monotonic() + seconds
    response.stream = _stream_of(response, coding, deadline)


def refusal_in(error: BaseException) -> ResponseRefused | None:
    """The ResponseRefused that `error` wraps, however deep, if there is one."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        if isinstance(found, ResponseRefused):
            return found
        seen.add(id(found))
        waiting += [found.__cause__, found.__context__]
    return None


def _media_type(response: Any) -> str:
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def _stream_of(response: Any, coding: str, deadline: float | None) -> Any:
    """`response.stream`, bounded; an instance of what the very library of the response takes for a stream."""
    inner = response.stream
    base: type = sys.modules[type(response).__module__.partition(".")[0]].SyncByteStream

    class BoundedStream(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for piece in _decoded(_timely(inner, deadline), coding):
                size += len(piece)
                if size > LARGEST_BODY:
                    raise _too_large()
                yield piece

        def close(self) -> None:
            inner.close()

    return BoundedStream()


def _timely(pieces: Any, deadline: float | None) -> Iterator[bytes]:
    """The timeout of a read starts anew with each byte; this one does not, so that no thread is kept for ever."""
    for piece in pieces:
        if deadline is not None and time.monotonic() > deadline:
            raise ResponseRefused(
                "the answer took too long", "allow more time, or ask for less", kind=EndpointUnreachable
            )
        yield piece


def _decoded(pieces: Iterator[bytes], coding: str) -> Iterator[bytes]:
    if coding in ("", "identity"):
        yield from pieces
        return
    if coding not in _ZLIB:
        raise ResponseRefused(
            f"the answer's body is in a coding that was not asked for: {coding}",
            f"the endpoint must heed Accept-Encoding ({ACCEPTED_CODINGS}); a proxy in between may be at fault",
        )
    unpacker: Any = None
    for piece in pieces:
        if unpacker is None:
            # Some servers call deflate what has no zlib header (RFC 9110, 8.4.1.2).
            raw = coding == "deflate" and piece[:1] and piece[0] & 0x0F != 8
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS if raw else _ZLIB[coding])
        rest = piece
        while rest and not unpacker.eof:
            try:
                out = unpacker.decompress(rest, _PIECE)
            except zlib.error:
                raise _broken(coding) from None
            if out:
                yield out
            rest = unpacker.unconsumed_tail
    if unpacker is not None and not unpacker.eof:
        yield from _tail(unpacker, coding)


def _tail(unpacker: Any, coding: str) -> Iterator[bytes]:
    """What zlib still holds back once its input is used up; a coded body without its end was cut."""
    while out := unpacker.decompress(b"", _PIECE):
        yield out
    if not unpacker.eof:
        raise _broken(coding)


def _broken(coding: str) -> ResponseRefused:
    return ResponseRefused(
        f"the answer's body is broken or cut: it does not decode as {coding}",
        "the connection broke; try again",
        can_pass=True,
    )


def _too_large() -> ResponseRefused:
    return ResponseRefused(
        f"the answer's body is larger than {LARGEST_BODY // 2**20} MiB", "no chat completion is; check --base-url"
    )
