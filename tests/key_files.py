"""Keys made for one test: OpenSSH's own, and shared ones."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["allowed_line", "shared_key_file", "ssh_key_file"]


def ssh_key_file(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A key pair made by ssh-keygen: the private key at `path`, the public one beside it."""
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run([program, "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", path], check=True)
    return path


def shared_key_file(path: Path, content: bytes | None = None, *, mode: int = 0o600) -> Path:
    """A key that only we may read: random, unless its content is given."""
    path.write_bytes(secrets.token_bytes(32) if content is None else content)
    path.chmod(mode)
    return path


def allowed_line(key: Path, principal: str, options: str = "") -> str:
    """The line of an allowed_signers file for a key pair."""
    kind, public = key.with_name(key.name + ".pub").read_text().split()[:2]
    return " ".join(part for part in (principal, options, kind, public) if part)
