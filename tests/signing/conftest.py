"""Keys in the folder of the test, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from key_files import allowed_line, shared_key_file, ssh_key_file


@pytest.fixture
def ssh_key(tmp_path: Path) -> Callable[..., Path]:
    """`ssh_key("alice")` is a key pair of OpenSSH; skips where there is none."""

    def make(name: str, **options: Any) -> Path:
        return ssh_key_file(tmp_path / name, **options)

    return make


@pytest.fixture
def shared_key(tmp_path: Path) -> Callable[..., Path]:
    """`shared_key("team")` is a key for signer and verifier."""

    def make(name: str, content: bytes | None = None, **options: Any) -> Path:
        return shared_key_file(tmp_path / name, content, **options)

    return make


@pytest.fixture
def allowed() -> Callable[..., str]:
    """The line of an allowed_signers file for a key."""
    return allowed_line
