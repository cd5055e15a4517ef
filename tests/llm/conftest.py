import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

CANARY = "sk-canary/Zq+7&x=YW5vdGhlcg"


@pytest.fixture
def canary():
    """A key with every character that a URL, JSON or HTML spells differently."""
    return CANARY


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No keys, no proxies, offline; and a connection that leaves this machine fails, whoever opens it."""
    for name in list(os.environ):
        if name.upper().endswith(("_KEY", "_TOKEN", "_SECRET", "_PROXY")) or name.startswith(("OPENAI_", "LITELLM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PLANNER_OFFLINE", "1")
    connect = socket.socket.connect

    def loopback_only(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)
    return os.environ
