"""Signatures by OpenSSH keys, judged by ssh-keygen itself: who signed what, for which purpose."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from planner.errors import SignatureRefused, SigningKeyUnusable
from planner.signing import Signature, consistent, sign, verify

NAMESPACE = "planner/test"
MESSAGE = b'{"plan":"blake3:00"}\x00\xff\n'


def who(message: bytes, signature: Signature, *lines: str, namespace: str = NAMESPACE) -> str:
    return verify(message, signature, namespace=namespace, allowed_signers=lines, hmac_key=None)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_who_signed_is_the_name_that_the_allowed_signers_give(ssh_key, allowed, kind):
    key, other = ssh_key("alice", kind=kind), ssh_key("bob")
    signature = sign(MESSAGE, key, namespace=NAMESPACE)
    assert signature.kind == "ssh"
    shown = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True, check=True).stdout
    assert signature.signer == shown.split()[1]
    lines = [allowed(other, "bob@example.com"), "# a comment", allowed(key, "alice@example.com")]
    assert who(MESSAGE, signature, *lines) == "alice@example.com"
    assert consistent(MESSAGE, signature, namespace=NAMESPACE) == signature.signer
    assert Signature.model_validate_json(signature.model_dump_json()) == signature


def test_ssh_keygen_by_itself_takes_the_signature_and_we_take_its(ssh_key, allowed, tmp_path):
    key = ssh_key("alice")
    signature = sign(MESSAGE, key, namespace=NAMESPACE)
    (tmp_path / "sig").write_text(signature.value)
    (tmp_path / "allowed").write_text(allowed(key, "alice") + "\n")
    command = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "alice", "-n", NAMESPACE]
    subprocess.run([*command, "-s", tmp_path / "sig"], input=MESSAGE, check=True, capture_output=True)
    (tmp_path / "message").write_bytes(MESSAGE)
    made = ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", NAMESPACE, tmp_path / "message"]
    subprocess.run(made, check=True, capture_output=True)
    theirs = signature.model_copy(update={"value": (tmp_path / "message.sig").read_text()})
    assert who(MESSAGE, theirs, allowed(key, "alice")) == "alice"


def test_another_message_namespace_or_value_is_refused(ssh_key, allowed):
    key = ssh_key("alice")
    signature, line = sign(MESSAGE, key, namespace=NAMESPACE), allowed(key, "alice")
    with pytest.raises(SignatureRefused, match="not of this"):
        who(MESSAGE + b" ", signature, line)
    with pytest.raises(SignatureRefused, match="not of this"):
        consistent(MESSAGE + b" ", signature, namespace=NAMESPACE)
    with pytest.raises(SignatureRefused, match="namespace"):
        who(MESSAGE, signature, line, namespace="planner/other")
    for value in ("junk", "", signature.value[:80], signature.value + "=", "é", "A" * 60):
        with pytest.raises(SignatureRefused, match="none of OpenSSH"):
            who(MESSAGE, signature.model_copy(update={"value": value}), line)


def test_whoever_is_not_allowed_is_refused(ssh_key, allowed):
    alice, bob = ssh_key("alice"), ssh_key("bob")
    signature = sign(MESSAGE, bob, namespace=NAMESPACE)
    for lines in ([], [allowed(alice, "alice")], [allowed(bob, "bob", 'namespaces="git"')]):
        with pytest.raises(SignatureRefused, match="not allowed to") as caught:
            who(MESSAGE, signature, *lines)
        assert signature.signer in caught.value.message
    expired = allowed(bob, "bob", 'valid-before="20200101"')
    with pytest.raises(SignatureRefused):
        who(MESSAGE, signature, expired)
    assert who(MESSAGE, signature, expired, allowed(bob, "bob", f'namespaces="{NAMESPACE}"')) == "bob"


def test_the_signer_named_must_be_the_one_that_signed(ssh_key, allowed):
    alice, bob = ssh_key("alice"), ssh_key("bob")
    claimed = sign(MESSAGE, alice, namespace=NAMESPACE).signer
    signature = sign(MESSAGE, bob, namespace=NAMESPACE).model_copy(update={"signer": claimed})
    with pytest.raises(SignatureRefused, match="says that it is by"):
        who(MESSAGE, signature, allowed(bob, "bob"))
    with pytest.raises(SignatureRefused, match="says that it is by"):
        consistent(MESSAGE, signature, namespace=NAMESPACE)


def test_a_public_key_signs_where_the_private_one_lies_beside_it_or_not_at_all(ssh_key):
    key = ssh_key("alice")
    public = key.with_name("alice.pub")
    assert sign(MESSAGE, public, namespace=NAMESPACE).kind == "ssh"
    key.unlink()
    with pytest.raises(SigningKeyUnusable, match="No private key found"):
        sign(MESSAGE, public, namespace=NAMESPACE)


def test_a_passphrase_is_never_asked_for(ssh_key, monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("SSH_ASKPASS", "/bin/false")
    key = ssh_key("alice", passphrase="do not tell")
    with pytest.raises(SigningKeyUnusable, match="passphrase") as caught:
        sign(MESSAGE, key, namespace=NAMESPACE)
    assert "ssh-add" in caught.value.hint


def test_a_private_key_that_others_may_read_is_refused(ssh_key):
    key = ssh_key("alice")
    key.chmod(0o644)
    with pytest.raises(SigningKeyUnusable, match="Permissions 0644"):
        sign(MESSAGE, key, namespace=NAMESPACE)


def test_a_broken_key_is_refused_without_showing_it(ssh_key):
    key = ssh_key("alice")
    lines = key.read_text().splitlines()
    key.write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]) + "\n")
    key.with_name("alice.pub").unlink()
    with pytest.raises(SigningKeyUnusable) as caught:
        sign(MESSAGE, key, namespace=NAMESPACE)
    assert lines[2] not in caught.value.message + caught.value.hint


def test_without_ssh_keygen_it_says_so(ssh_key, monkeypatch):
    key = ssh_key("alice")
    signature = sign(MESSAGE, key, namespace=NAMESPACE)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SigningKeyUnusable, match="ssh-keygen is not installed"):
        sign(MESSAGE, key, namespace=NAMESPACE)
    with pytest.raises(SigningKeyUnusable, match="ssh-keygen is not installed"):
        who(MESSAGE, signature)


def test_an_ssh_keygen_that_hangs_is_given_up(ssh_key, tmp_path, monkeypatch):
    key = ssh_key("alice")
    stuck = tmp_path / "bin" / "ssh-keygen"
    stuck.parent.mkdir()
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stuck.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("planner.signing.openssh._FOR_AGENT", 0.2)
    before = time.monotonic()
    with pytest.raises(SigningKeyUnusable, match="did not answer"):
        sign(MESSAGE, key, namespace=NAMESPACE)
    assert time.monotonic() - before < 30


def test_nothing_is_written_and_no_pipe_is_left_open(ssh_key, allowed, tmp_path):
    key = ssh_key("alice")
    signature = sign(MESSAGE, key, namespace=NAMESPACE)
    there, pipes = sorted(tmp_path.iterdir()), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        who(MESSAGE, signature, allowed(key, "alice"))
        with pytest.raises(SignatureRefused):
            who(MESSAGE, signature, "")
    with pytest.raises(SigningKeyUnusable, match="of signers or signature"):
        who(MESSAGE, signature, *[allowed(key, "alice")] * 1000)
    assert sorted(tmp_path.iterdir()) == there
    assert len(os.listdir("/proc/self/fd")) == pipes


def test_a_namespace_is_a_plain_word(tmp_path: Path):
    for unfit in ("", "-n", "a b", "a\nb", "x" * 101):
        with pytest.raises(ValueError, match="is no namespace"):
            sign(b"", tmp_path / "key", namespace=unfit)
