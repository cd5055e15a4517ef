"""The HTTP client below an SDK: made once, used again by every request, bounded, and never through a wrong door.

openai 2 is built on httpx, openai 3 on httpx2; the two are alike, and whatever an SDK is given must come from its own.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from planner.errors import EndpointUnreachable
from planner.llm.responses import ACCEPTED_CODINGS, ResponseRefused, guard

__all__ = ["Pool", "http_client", "http_library"]

# Where a client may ask several machines, these are this one.
_DIRECT = ("all://localhost", "all://127.0.0.1", "all://[::1]")


class _Closable(Protocol):
    def close(self) -> None: ...


_C = TypeVar("_C", bound=_Closable)


@functools.cache
def http_library() -> Any:
    """The module that the installed openai SDK opens its connections with: httpx or httpx2."""
    major = importlib.metadata.version("openai").partition(".")[0]
    return importlib.import_module("httpx2" if major.isdigit() and int(major) >= 3 else "httpx")


def http_client(make: Callable[..., _C], library: Any, *, loopback: bool) -> _C:
    """A client of `library`, made by `make`: bounded answers, no redirects, the environment's proxies and certificates.

    A proxy cannot reach this machine's loopback, and would make a local request leave it; so it is used for other
    machines only. `loopback` says that the one endpoint is this machine, however spelled. Raises ResponseRefused where
    the environment makes no sense.
    """
    try:
        return make(
            follow_redirects=False,
            trust_env=not loopback,
            verify=library.create_ssl_context(trust_env=True),
            mounts=dict.fromkeys(_DIRECT),
            event_hooks={"response": [guard]},
            headers={"Accept-Encoding": ACCEPTED_CODINGS},
        )
    except (ImportError, OSError) as error:
        what = f": {error}"
    except (ValueError, library.InvalidURL):
        what = ""  # the address of a proxy may hold a password
    raise ResponseRefused(
        f"the environment's settings for connections cannot be used{what}",
        "check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY (a SOCKS proxy needs the package socksio), SSL_CERT_FILE and "
        "SSL_CERT_DIR",
        kind=EndpointUnreachable,
    )


@dataclass
class _Shared(Generic[_C]):
    client: _C
    users: int = 0


class Pool(Generic[_C]):
    """Lends one client, made at first use. After `drop` the next loan is a new one; the old is closed when unused.

    A thread that was left behind at a deadline still reads from its connection, so its client is never lent again, and
    is closed by whoever has it last. Safe for threads.
    """

    def __init__(self, make: Callable[[], _C]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._current: _Shared[_C] | None = None

    @contextlib.contextmanager
    def lent(self) -> Iterator[_C]:
        """The client, for the duration."""
        with self._lock:
            shared = self._current = self._current or _Shared(self._make())
            shared.users += 1
        try:
            yield shared.client
        finally:
            with self._lock:
                shared.users -= 1
                unused = shared.users == 0 and shared is not self._current
            if unused:
                shared.client.close()

    def drop(self) -> None:
        """Lend a new client from now on, and let the old one go."""
        with self._lock:
            shared, self._current = self._current, None
            unused = shared is not None and shared.users == 0
        if shared is not None and unused:
            shared.client.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.drop()
