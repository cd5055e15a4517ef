"""The world every test lives in: no keys, no network, a cache of its own, and the bundled model to work on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

REPOSITORY = Path(__file__).parents[1]
TINY_MODEL = REPOSITORY / "examples" / "tiny-model"


@pytest.fixture(autouse=True)
def sealed(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No keys, no proxies, offline; and a connection that leaves this machine fails, whoever opens it."""
    for name in list(os.environ):
        if name.upper().endswith(("_KEY", "_TOKEN", "_SECRET", "_PROXY")) or name.startswith(("OPENAI_", "LITELLM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PLANNER_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PLANNER_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("PLANNER_STATE", str(tmp_path_factory.mktemp("state")))
    connect = socket.socket.connect

    def loopback_only(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A working copy of the bundled model."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "tiny-model"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """A real checkpoint trained by others, and real texts, where they are present."""
    folder = Path(os.environ.get("PLANNER_ASSETS", REPOSITORY.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no assets at {folder}; set PLANNER_ASSETS")
    return folder


@dataclass(frozen=True)
class Result:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


@pytest.fixture
def planner(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command in this process, as the console script does: `planner("check", plan, "--model", model)`."""
    from planner.cli import main

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run
