"""Sign bytes and verify signatures, whatever kind of key it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from planner.errors import SignatureRefused
from planner.signing.keys import hmac_key, key_kind
from planner.signing.openssh import check_consistent, key_fingerprint, sign_by_ssh, signer_allowed
from planner.signing.shared_key import authentication_code, is_code_of, key_id
from planner.signing.types import Signature

__all__ = ["consistent", "sign", "verify"]

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._/-]{0,99}")


def sign(message: bytes, key: Path, *, namespace: str) -> Signature:
    """Sign `message` for one purpose. What the file `key` holds says how: a key of OpenSSH, or a shared key.

    Raises `SigningKeyUnusable`.
    """
    _check_namespace(namespace)
    if key_kind(key) == "ssh":
        armored = sign_by_ssh(message, key, namespace=namespace)
        return Signature(kind="ssh", signer=key_fingerprint(armored), value=armored)
    shared = hmac_key(key)
    code = authentication_code(message, shared, namespace=namespace)
    return Signature(kind="hmac-sha256", signer=key_id(shared), value=code)


def verify(
    message: bytes, signature: Signature, *, namespace: str, allowed_signers: Sequence[str], hmac_key: bytes | None
) -> str:
    """Who signed: the name that `allowed_signers` gives to an OpenSSH key, or the id of the shared key.

    `allowed_signers` are lines of an OpenSSH file of that name, and ids of shared keys (`hmac-sha256:...`). No OpenSSH
    key is allowed that they do not name. Where they name nobody, any shared key will do that the caller gives.

    Raises `SignatureRefused`, and `SigningKeyUnusable` where ssh-keygen cannot be run.
    """
    _check_namespace(namespace)
    if signature.kind == "ssh":
        if signature.signer != key_fingerprint(signature.value):
            raise _other_key(signature, key_fingerprint(signature.value))
        lines = [line for line in allowed_signers if not _is_key_id(line)]
        return signer_allowed(message, signature.value, namespace=namespace, allowed_signers=lines)
    if hmac_key is None:
        raise SignatureRefused(
            f"the signature is by the shared key {signature.signer}, and no key was given to verify it with",
            hint="name the file of the shared key",
        )
    if signature.signer != key_id(hmac_key):
        raise _other_key(signature, key_id(hmac_key))
    if allowed_signers and signature.signer not in (line.strip() for line in allowed_signers):
        raise SignatureRefused(
            f"signed by the shared key {signature.signer}, which is not allowed to",
            hint="let somebody sign whom the policy allows, or add the id of the key to its `allowed_signers`",
        )
    if not is_code_of(signature.value, message, hmac_key, namespace=namespace):
        raise SignatureRefused(
            "the signature is not of this by the key given",
            hint="something was changed after it was signed; look what, and sign again",
        )
    return signature.signer


def consistent(message: bytes, signature: Signature, *, namespace: str) -> str:
    """The key of an OpenSSH signature that is of this message. Anybody can make a key: it does not say who signed.

    For a signature whose possible signers nobody named. Raises as `verify` does.
    """
    _check_namespace(namespace)
    if signature.kind != "ssh":
        raise SignatureRefused("only the shared key can tell", hint="name the file of the shared key")
    if signature.signer != key_fingerprint(signature.value):
        raise _other_key(signature, key_fingerprint(signature.value))
    check_consistent(message, signature.value, namespace=namespace)
    return signature.signer


def _is_key_id(line: str) -> bool:
    return line.strip().startswith("hmac-sha256:")


def _other_key(signature: Signature, found: str) -> SignatureRefused:
    return SignatureRefused(
        f"the signature says that it is by the key {signature.signer}; this key is {found}",
        hint="is it the right key? If the signature was edited, sign again",
    )


def _check_namespace(namespace: str) -> None:
    if not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"{namespace!r} is no namespace: letters, digits and @ . _ / - only")
