"""Signatures by a shared key: HMAC-SHA256 (RFC 2104). Whoever can verify one can also make one."""

from __future__ import annotations

import hmac

__all__ = ["authentication_code", "is_code_of", "key_id"]


def authentication_code(message: bytes, key: bytes, *, namespace: str) -> str:
    """HMAC-SHA256 of purpose and message, as 64 hexadecimal digits. `namespace` holds no NUL, which ends it."""
    return hmac.digest(key, b"planner-signature\0" + namespace.encode() + b"\0" + message, "sha256").hex()


def is_code_of(code: str, message: bytes, key: bytes, *, namespace: str) -> bool:
    """Whether it is, found in a time that does not tell how much of it is right."""
    return hmac.compare_digest(code.encode(), authentication_code(message, key, namespace=namespace).encode())


def key_id(key: bytes) -> str:
    """A name for the key which tells nothing about it."""
    return "hmac-sha256:" + hmac.digest(key, b"planner-key-id", "sha256")[:16].hex()
