"""Key files: which kind one is, and the bytes of a shared key. No message here ever holds a byte of a key."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from planner.errors import SigningKeyUnusable

__all__ = ["hmac_key", "key_kind"]

_SHORTEST = 32
"""Bytes: as many as the hash gives; RFC 2104, section 3, advises against less."""
_LARGEST = 64 * 2**10
_OPENSSH = (b"-----BEGIN ", b"---- BEGIN ", b"ssh-", b"ecdsa-sha2-", b"sk-ssh-", b"sk-ecdsa-", b"PuTTY-")
"""How private and public keys begin. None of them is ever a shared key: half of them anybody may know."""


def key_kind(path: Path) -> Literal["ssh", "hmac-sha256"]:
    """What the file is, by its content. Raises `SigningKeyUnusable` if it cannot be read."""
    return "ssh" if _is_openssh(_read(path)[0]) else "hmac-sha256"


def hmac_key(path: Path) -> bytes:
    """The bytes of a shared key, every one of them: a line break at the end belongs to it.

    Raises `SigningKeyUnusable` if it cannot be read, is of OpenSSH, is shorter than 32 bytes, or is not kept secret.
    """
    key, mode = _read(path)
    if _is_openssh(key):
        raise SigningKeyUnusable(f"{path} is a key pair's, not a shared key", hint=_HOW_TO_MAKE)
    if mode & 0o027:  # anybody may read it, or somebody else may replace it
        raise SigningKeyUnusable(f"{path} is open to other users: mode {mode:04o}", hint=f"chmod 600 {path}")
    if len(key) < _SHORTEST:
        raise SigningKeyUnusable(f"{path} holds {len(key)} bytes; a key has at least {_SHORTEST}", hint=_HOW_TO_MAKE)
    return key


_HOW_TO_MAKE = "make a shared key: (umask 077; head -c 32 /dev/urandom > FILE)"


def _is_openssh(content: bytes) -> bool:
    return content.lstrip().startswith(_OPENSSH)


def _read(path: Path) -> tuple[bytes, int]:
    """Content and mode of one and the same file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not stop us
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise SigningKeyUnusable(f"{path} is not a regular file", hint="name the file of a key")
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise SigningKeyUnusable(f"{path}: {error.strerror}", hint="check the path") from None
    if len(content) > _LARGEST:
        raise SigningKeyUnusable(f"{path} is larger than any key", hint="name the file of a key")
    return content, stat.S_IMODE(found.st_mode)
