"""Bodies that are too large, too slow, or not coded as they say."""

import gzip
import importlib.util
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from chat_server import Answer, Bomb, ChatServer

from planner.errors import EndpointUnreachable
from planner.llm.connections import http_library
from planner.llm.responses import LARGEST_BODY, ResponseRefused, guard, refusal_in

NEEDS_LITELLM = pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="litellm is not installed")
httpx = http_library()
BODY = b'{"a": "' + b"x" * 300_000 + b'"}'


class Pieces(httpx.SyncByteStream):
    def __init__(self, pieces):
        self.pieces = pieces
        self.closed = False

    def __iter__(self):
        yield from self.pieces

    def close(self):
        self.closed = True


def response(body, coding=None, *, size=1000, status=200, read_s=60.0, **headers):
    """A response that passed the guard, its stream given in pieces of `size` bytes."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)] if isinstance(body, bytes) else body
    asked = httpx.Request("POST", "http://127.0.0.1/v1", extensions={"timeout": {"read": read_s}})
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers |= {} if coding is None else {"Content-Encoding": coding}
    made = httpx.Response(status, headers=headers, stream=Pieces(pieces), request=asked)
    guard(made)
    return made


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


CODED = {
    None: BODY,
    "identity": BODY,
    "gzip": gzip.compress(BODY),
    "GZIP ": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
}


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_bodies_are_decoded(coding, size):
    if size > 1 or len(CODED[coding]) < 10_000:
        assert response(CODED[coding], coding, size=size).read() == BODY


def test_deflate_without_a_header_and_an_empty_body():
    assert response(raw_deflate(BODY), "deflate").read() == BODY
    assert response(b"", "gzip").read() == b""


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress", "x"])
def test_a_coding_that_was_not_asked_for(coding):
    with pytest.raises(ResponseRefused, match="not asked for"):
        response(b"anything", coding).read()


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(BODY)[:-20], gzip.compress(BODY)[:30] + b"\xff" * 99])
def test_broken_bodies(body):
    with pytest.raises(ResponseRefused, match="broken or cut") as caught:
        response(body, "gzip").read()
    assert caught.value.can_pass


def test_16_mib_are_read_and_one_byte_more_is_not():
    assert len(response(bytes(LARGEST_BODY), size=2**20).read()) == LARGEST_BODY
    for body, coding in ((bytes(LARGEST_BODY + 1), None), (gzip.compress(bytes(LARGEST_BODY + 1), 1), "gzip")):
        with pytest.raises(ResponseRefused, match="larger than 16 MiB"):
            response(body, coding, size=2**20).read()


def test_no_piece_is_larger_than_what_came_in():
    pieces = response(gzip.compress(bytes(LARGEST_BODY)), "gzip", size=2**20).stream
    assert max(map(len, pieces)) <= 2**16


def test_the_whole_body_has_to_come_in_time():
    def slow():
        for _ in range(100):
            time.sleep(0.02)
            yield b" "

    began = time.monotonic()
    with pytest.raises(ResponseRefused, match="too long") as caught:
        response(slow(), read_s=0.1).read()
    assert time.monotonic() - began < 1.9
    assert caught.value.kind is EndpointUnreachable


def test_the_stream_is_closed_with_the_response():
    made = response(b"{}")
    inner = made.stream
    made.read()
    made.close()
    assert made.is_closed
    assert inner is not None


def test_events_are_refused_before_their_body_is_read():
    def endless():
        raise AssertionError("the body was read")
        yield

    with pytest.raises(ResponseRefused, match="stream of events"):
        response(endless(), content_type="Text/Event-Stream; charset=utf-8")
    assert response(b"data: no", status=400, content_type="text/event-stream").read() == b"data: no"


def test_a_refusal_is_found_however_deep_it_is_wrapped():
    refused = ResponseRefused("w", "h")

    def wrapped(by_cause):
        try:
            try:
                raise refused
            except ResponseRefused as error:
                raise ValueError from (error if by_cause else None)
        except ValueError:
            raise KeyError from None

    for by_cause in (True, False):
        with pytest.raises(KeyError) as caught:
            wrapped(by_cause)
        assert refusal_in(caught.value) is refused
    assert refusal_in(ValueError()) is None
    circle = ValueError()
    circle.__context__ = KeyError()
    circle.__context__.__context__ = circle
    assert refusal_in(circle) is None


CHILD = """
import os, resource, sys
from planner.errors import EndpointRefused
from planner.llm import LiteLLMClient, Message, OpenAICompatibleClient, Request

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

kind, base_url = sys.argv[1:]
given = {"base_url": base_url, "timeout_s": 60, "environment": os.environ}
client = LiteLLMClient("openai/m", **given) if kind == "litellm" else OpenAICompatibleClient("m", **given)
request = Request(messages=(Message(role="user", content="hi"),))
assert client.complete(request).text == "a"  # everything is imported, every pool is made
before = peak()
for _ in range(2):
    try:
        client.complete(request)
    except EndpointRefused as error:
        assert "larger than 16 MiB (after 1 attempt)" in error.message, error.message
    else:
        raise AssertionError("a reply")
client.close()
print((peak() - before) // 2**20)
"""


@pytest.mark.parametrize(
    "kind",
    [
        "openai",
        pytest.param("litellm", marks=NEEDS_LITELLM),
    ],
)
def test_a_bomb_of_a_gibibyte_is_refused_in_little_memory(kind):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENAI_API_KEY": "k" * 20}
    with ChatServer([Answer("a"), Bomb(2**30), Bomb(2**30, "deflate", 500)]) as server:
        command = [sys.executable, "-c", CHILD, kind, server.base_url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) < 150
