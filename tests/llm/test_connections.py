"""Which connections are opened, kept and dropped, through which proxy, and whom they trust."""

import os
import shutil
import signal
import subprocess
import threading
import time

import openai.resources.chat  # noqa: F401 - imported before any test looks at the clock
import pytest
from chat_server import Answer, ChatServer, Cut, Hang, Lie, Redirect, Status

from planner.errors import EndpointRefused, EndpointUnreachable
from planner.llm import Message, Request
from planner.llm.connections import Pool, http_client, http_library

ASK = Request(messages=(Message(role="user", content="hi"),))
BUSY = Status(503, {"error": {"message": "overloaded"}})


def test_five_requests_use_one_connection(transport):
    with ChatServer([Answer("a")] * 5) as server:
        client = transport(server)
        assert [client.complete(ASK).text for _ in range(5)] == ["a"] * 5
        assert server.connections == 1


def test_retries_and_refusals_keep_the_connection(transport):
    with ChatServer([BUSY, BUSY, Answer("a"), Status(400, "no"), Answer("b")]) as server:
        client = transport(server)
        assert client.complete(ASK).attempts == 3
        with pytest.raises(EndpointRefused):
            client.complete(ASK)
        assert client.complete(ASK).text == "b"
        assert server.connections == 1


def test_two_clients_share_nothing(transport):
    with ChatServer([Answer("a")] * 2) as server:
        transport(server).complete(ASK)
        transport(server).complete(ASK)
        assert server.connections == 2


def test_a_closed_client_opens_a_new_connection(transport):
    with ChatServer([Answer("a"), Answer("b")]) as server:
        client = transport(server)
        client.complete(ASK)
        client.close()
        client.close()
        assert client.complete(ASK).text == "b"
        assert server.connections == 2


def test_a_connection_left_behind_at_the_deadline_is_not_used_again(transport):
    with ChatServer([Answer("a"), Hang(), Answer("b"), Answer("c")]) as server:
        client = transport(server)
        assert client.complete(ASK).text == "a"
        began = time.monotonic()
        with pytest.raises(EndpointUnreachable, match=r"within 0\.3 s"):
            client.complete(ASK, within_s=0.3)
        assert time.monotonic() - began < 10
        assert [client.complete(ASK).text, client.complete(ASK).text] == ["b", "c"]
        assert server.connections == 2


def test_a_late_answer_ends_with_its_connection(transport):
    def late(received):
        time.sleep(0.5)
        return Answer("late")

    with ChatServer([Answer("a"), late, Answer("b")]) as server:
        client = transport(server)
        client.complete(ASK)
        with pytest.raises(EndpointUnreachable):
            client.complete(ASK, within_s=0.2)
        time.sleep(0.6)  # the answer that nobody waits for has come
        assert client.complete(ASK).text == "b"
        assert server.connections == 2


@pytest.mark.parametrize("item", [Lie(-20), Cut(length=False)], ids=str)
def test_the_rest_of_a_body_is_not_the_next_answer(item, transport):
    with ChatServer([item, Answer("whole")]) as server:
        reply = transport(server).complete(ASK)
        assert (reply.text, reply.attempts) == ("whole", 2)
        assert server.connections == 2


def test_after_ctrl_c_the_client_still_works(transport):
    with ChatServer([Hang(), Answer("b")]) as server:
        client = transport(server)
        timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.complete(ASK)
        timer.join()
        assert client.complete(ASK).text == "b"
        assert server.connections == 2


@pytest.mark.parametrize(("timeout_s", "within_s"), [(20.0, 0.4), (0.4, 20.0), (0.4, None)])
def test_the_smaller_limit_of_time_holds(timeout_s, within_s, transport):
    with ChatServer([Hang()]) as server:
        began = time.monotonic()
        with pytest.raises(EndpointUnreachable, match=r"within 0\.4 s"):
            transport(server, timeout_s=timeout_s).complete(ASK, within_s=within_s)
        assert time.monotonic() - began < 10, "and not 20 s"


@pytest.mark.parametrize("within_s", [0.0, -3.0])
def test_without_time_nothing_is_sent(within_s, transport):
    with ChatServer([]) as server:
        with pytest.raises(EndpointUnreachable, match="no time is left"):
            transport(server).complete(ASK, within_s=within_s)
        assert server.connections == 0


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_reaches_nobody(code, transport):
    with ChatServer([]) as other, ChatServer([Redirect(code, f"{other.base_url}/chat/completions")]) as server:
        with pytest.raises(EndpointRefused, match=f"answered {code}") as caught:
            transport(server).complete(ASK)
        assert f"points to {other.base_url}" in caught.value.hint
        assert other.connections == 0


# Of the environment: proxies and certificates.


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_another_machine_is_asked_through_the_proxy(variable, transport, monkeypatch):
    monkeypatch.setenv("PLANNER_OFFLINE", "0")
    with ChatServer([Answer("through")]) as proxy:
        monkeypatch.setenv(variable, proxy.base_url.removesuffix("/v1"))
        assert transport("http://example.invalid/v1").complete(ASK).text == "through"
    assert proxy.requests[0].path == "http://example.invalid/v1/chat/completions"


def test_no_proxy_names_who_is_asked_directly(transport, monkeypatch):
    monkeypatch.setenv("PLANNER_OFFLINE", "0")
    with ChatServer([]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
        monkeypatch.setenv("NO_PROXY", "example.invalid")
        with pytest.raises(EndpointUnreachable):
            transport("http://example.invalid/v1").complete(ASK)
        assert proxy.connections == 0


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
def test_this_machine_is_never_asked_through_a_proxy(variable, transport, monkeypatch):
    with ChatServer([]) as proxy, ChatServer([Answer("direct")]) as server:
        monkeypatch.setenv(variable, proxy.base_url.removesuffix("/v1"))
        assert transport(server).complete(ASK).text == "direct"
        assert proxy.connections == 0


def test_this_machine_under_another_spelling_is_not_asked_through_a_proxy_either(transport, monkeypatch):
    with ChatServer([]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
        with pytest.raises(EndpointUnreachable):
            transport("http://127.9.9.9:9/v1", timeout_s=2.0).complete(ASK)
        assert proxy.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_client_for_several_machines_asks_this_one_directly(host, monkeypatch):
    library = http_library()
    with ChatServer([]) as proxy, ChatServer([]) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.base_url.removesuffix("/v1"))
        with http_client(library.Client, library, loopback=False) as client:
            client.get(server.base_url.replace("127.0.0.1", host) + "/models")
        assert (proxy.connections, server.connections) == (0, 1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """The certificate of an authority of our own, and one for 127.0.0.1 with its key that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("authority")

    def run(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    uses = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    run("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", *uses)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    run("req", *curve[:-2], "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=127.0.0.1")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    run("x509", "-req", "-in", "request.pem", *signed, "-out", "signed.pem")
    (folder / "server.pem").write_bytes((folder / "key.pem").read_bytes() + (folder / "signed.pem").read_bytes())
    return folder


def test_an_authority_of_the_environment_is_trusted(authority, transport, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    with ChatServer([Answer("a"), Answer("b")], certificate=authority / "server.pem") as server:
        client = transport(server)
        assert [client.complete(ASK).text, client.complete(ASK).text] == ["a", "b"]
        assert server.connections == 1


def test_an_unknown_authority_is_not_trusted(authority, transport, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with ChatServer([], certificate=authority / "server.pem") as server:
        with pytest.raises(EndpointUnreachable, match="certificate"):
            transport(server).complete(ASK)
        assert server.requests == []


def test_an_environment_that_makes_no_sense_is_a_typed_error(transport, monkeypatch, tmp_path):
    monkeypatch.setenv("PLANNER_OFFLINE", "0")
    for name, value in (
        ("HTTP_PROXY", "gopher://user:passw0rd@127.0.0.1"),
        ("ALL_PROXY", "http://[::1"),
        ("SSL_CERT_FILE", str(tmp_path / "none.pem")),
        ("SSL_CERT_FILE", __file__),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(EndpointUnreachable, match="environment's settings") as caught:
                transport("http://example.invalid/v1").complete(ASK)
            assert name in caught.value.hint
            assert "passw0rd" not in caught.value.message + caught.value.hint
            assert caught.value.__context__ is None


# The pool by itself.


class Counted:
    def __init__(self):
        self.closed = 0

    def close(self):
        self.closed += 1


def test_a_dropped_client_is_closed_by_whoever_has_it_last():
    made = []
    pool = Pool(lambda: made.append(Counted()) or made[-1])
    with pool.lent() as first, pool.lent() as same:
        assert first is same
        pool.drop()
        with pool.lent() as second:
            assert second is not first
        assert (first.closed, second.closed) == (0, 0)
    assert (first.closed, second.closed) == (1, 0)
    pool.drop()
    pool.drop()
    assert (first.closed, second.closed, len(made)) == (1, 1, 2)


def test_a_forgotten_pool_closes_its_client():
    made = []
    pool = Pool(lambda: made.append(Counted()) or made[-1])
    with pool.lent():
        pass
    del pool
    assert made[0].closed == 1


def test_a_pool_that_cannot_make_a_client_tries_again():
    made = iter([ZeroDivisionError, Counted()])

    def make():
        found = next(made)
        if isinstance(found, type):
            raise found
        return found

    pool = Pool(make)
    with pytest.raises(ZeroDivisionError), pool.lent():
        pass
    with pool.lent() as client:
        assert client.closed == 0


def test_the_library_is_that_of_the_sdk():
    import openai

    assert issubclass(openai.DefaultHttpxClient, http_library().Client)
