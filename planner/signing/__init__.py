"""Signatures over bytes: who vouches for them. OpenSSH keys through ssh-keygen, or a shared key through HMAC-SHA256.

Nothing here knows what the bytes mean, and nothing is written: ssh-keygen is fed through pipes. The namespace keeps a
signature made for one purpose from being taken for another.
"""

from __future__ import annotations

from planner.signing.keys import hmac_key
from planner.signing.openssh import ssh_keygen_found
from planner.signing.signatures import consistent, sign, verify
from planner.signing.types import Signature

__all__ = ["Signature", "consistent", "hmac_key", "sign", "ssh_keygen_found", "verify"]
