"""Signature: the record of one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.records import Record

__all__ = ["Signature"]


class Signature(Record):
    """Proof that the holder of a key vouched for some bytes, kept apart from them."""

    kind: Literal["ssh", "hmac-sha256"]
    """An OpenSSH key, or a key that signer and verifier share."""
    signer: str = Field(pattern=r"^(SHA256:[A-Za-z0-9+/]{43}|hmac-sha256:[0-9a-f]{32})$")
    """Which key: the fingerprint of an OpenSSH key as `ssh-keygen -l` shows it, or the id of a shared key."""
    value: str = Field(min_length=1, max_length=16384)
    """The signature: armored as ssh-keygen writes it, or 64 hexadecimal digits."""
