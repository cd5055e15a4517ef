"""Signatures by a shared key: only that key and that message will do, and the key is kept to itself."""

from __future__ import annotations

import hashlib
import hmac
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import SignatureRefused, SigningKeyUnusable
from planner.signing import Signature, consistent, hmac_key, sign, verify
from planner.signing.shared_key import authentication_code, is_code_of

NAMESPACE = "planner/test"
MESSAGE = b"what was approved"


def who(message: bytes, signature: Signature, key: bytes | None, *lines: str, namespace: str = NAMESPACE) -> str:
    return verify(message, signature, namespace=namespace, allowed_signers=lines, hmac_key=key)


def test_the_holder_of_the_key_can_sign_and_verify(shared_key):
    path = shared_key("team")
    signature = sign(MESSAGE, path, namespace=NAMESPACE)
    assert signature.kind == "hmac-sha256"
    oracle = hmac.new(path.read_bytes(), b"planner-signature\0planner/test\0" + MESSAGE, hashlib.sha256)
    assert signature.value == oracle.hexdigest()
    assert who(MESSAGE, signature, hmac_key(path)) == signature.signer
    assert who(MESSAGE, signature, hmac_key(path), "# others", signature.signer) == signature.signer


def test_anything_else_is_refused(shared_key):
    path, other = shared_key("team"), shared_key("other")
    signature, key = sign(MESSAGE, path, namespace=NAMESPACE), hmac_key(path)
    with pytest.raises(SignatureRefused, match="no key was given"):
        who(MESSAGE, signature, None)
    with pytest.raises(SignatureRefused, match="says that it is by the key"):
        who(MESSAGE, signature, hmac_key(other))
    with pytest.raises(SignatureRefused, match="not of this by the key given"):
        who(MESSAGE + b".", signature, key)
    with pytest.raises(SignatureRefused, match="not of this by the key given"):
        who(MESSAGE, signature, key, namespace="planner/other")
    with pytest.raises(SignatureRefused, match="which is not allowed to"):
        who(MESSAGE, signature, key, "alice ssh-ed25519 AAAA")
    with pytest.raises(SignatureRefused, match="only the shared key can tell"):
        consistent(MESSAGE, signature, namespace=NAMESPACE)


def test_every_digit_of_the_code_counts(shared_key):
    path = shared_key("team")
    signature, key = sign(MESSAGE, path, namespace=NAMESPACE), hmac_key(path)
    for place, digit in enumerate(signature.value):
        value = signature.value[:place] + ("0" if digit != "0" else "1") + signature.value[place + 1 :]
        with pytest.raises(SignatureRefused):
            who(MESSAGE, signature.model_copy(update={"value": value}), key)
    for value in (signature.value.upper(), signature.value + "0", signature.value[:-1], "é"):
        with pytest.raises(SignatureRefused):
            who(MESSAGE, signature.model_copy(update={"value": value}), key)


_WORD = st.text("abc/", min_size=1, max_size=4)


@given(st.binary(max_size=8), st.binary(max_size=8), _WORD, _WORD)
def test_no_two_messages_or_purposes_share_a_code(first: bytes, second: bytes, one: str, two: str) -> None:
    key = bytes(range(32))
    code = authentication_code(first, key, namespace=one)
    assert is_code_of(code, second, key, namespace=two) == ((first, one) == (second, two))


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"x" * 31, 0o600, "holds 31 bytes"),
        (b"", 0o600, "holds 0 bytes"),
        (bytes(range(32)), 0o644, "open to other users: mode 0644"),
        (bytes(range(32)), 0o604, "open to other users: mode 0604"),
        (bytes(range(32)), 0o620, "open to other users: mode 0620"),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA x@y\n", 0o600, "is a key pair's"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + b"A" * 64, 0o600, "is a key pair's"),
        (b"\n-----BEGIN CERTIFICATE-----\n" + b"A" * 64, 0o600, "is a key pair's"),
        (b"k" * 70_000, 0o600, "larger than any key"),
    ],
)
def test_a_file_that_is_no_key_to_share_is_refused_and_not_shown(shared_key, content, mode, said):
    path = shared_key("team", content, mode=mode)
    with pytest.raises(SigningKeyUnusable, match=said) as caught:
        hmac_key(path)
    assert caught.value.exit_status == 2
    if content:
        assert content[:16].decode().strip() not in caught.value.message + caught.value.hint
    if mode != 0o600:
        assert caught.value.hint == f"chmod 600 {path}"
        with pytest.raises(SigningKeyUnusable, match="open to other users"):
            sign(MESSAGE, path, namespace=NAMESPACE)


def test_a_group_may_share_a_key(shared_key):
    assert len(hmac_key(shared_key("team", mode=0o640))) == 32


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name, said in (("none", "No such file"), ("fifo", "not a regular file"), (".", "directory|regular file")):
        with pytest.raises(SigningKeyUnusable, match=said):
            hmac_key(tmp_path / name)
