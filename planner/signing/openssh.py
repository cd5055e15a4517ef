"""Signatures by OpenSSH keys: `ssh-keygen -Y`, run without shell, terminal or file of ours.

What it reads besides the message goes through pipes, which it opens as /dev/fd/N. It never asks for a passphrase: a
key that has one is used through ssh-agent. The format is that of OpenSSH's PROTOCOL.sshsig.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from planner.errors import SignatureRefused, SigningKeyUnusable
from planner.plain_text import plain

__all__ = ["check_consistent", "key_fingerprint", "sign_by_ssh", "signer_allowed", "ssh_keygen_found"]

_FOR_AGENT = 60.0
"""Seconds to sign: a hardware key waits to be touched."""
_TO_VERIFY = 20.0
_BEGIN = "-----BEGIN SSH SIGNATURE-----"
_END = "-----END SSH SIGNATURE-----"


def ssh_keygen_found() -> bool:
    """Whether ssh-keygen is on this machine."""
    return shutil.which("ssh-keygen") is not None


def sign_by_ssh(message: bytes, key: Path, *, namespace: str) -> str:
    """An armored signature. `key` is a private key, or a public one whose private half ssh-agent holds.

    Raises `SigningKeyUnusable`.
    """
    done = _run(["-Y", "sign", "-f", str(key), "-n", namespace], message, seconds=_FOR_AGENT)
    if done.returncode:
        raise SigningKeyUnusable(
            f"ssh-keygen cannot sign with {key}: {_said(done)}",
            hint="a key with a passphrase is used through ssh-agent: ssh-add KEY; a private key has mode 0600",
        )
    return done.stdout.decode()


def check_consistent(message: bytes, armored: str, *, namespace: str) -> None:
    """Raise `SignatureRefused` unless the signature is of this message by the key it carries, whosever that is."""
    done = _run(["-Y", "check-novalidate", "-n", namespace, "-s", "{0}"], message, armored.encode())
    if done.returncode:
        raise _wrong(done)


def signer_allowed(message: bytes, armored: str, *, namespace: str, allowed_signers: Sequence[str]) -> str:
    """Who of `allowed_signers`, lines of an OpenSSH file of that name, signed. Raises `SignatureRefused`."""
    signature, allowed = armored.encode(), "".join(f"{line}\n" for line in allowed_signers).encode()
    found = _run(["-Y", "find-principals", "-s", "{0}", "-f", "{1}"], b"", signature, allowed)
    named = found.stdout.decode(errors="replace").splitlines() if not found.returncode else []
    done = found
    for principal in dict.fromkeys(named):  # which of them may sign for this namespace, only the next call says
        done = _run(
            ["-Y", "verify", "-s", "{0}", "-f", "{1}", "-I", principal, "-n", namespace], message, signature, allowed
        )
        if not done.returncode:
            return plain(principal)
    check_consistent(message, armored, namespace=namespace)  # a signature that is broken is no matter of who may sign
    raise SignatureRefused(
        f"signed by {key_fingerprint(armored)}, who is not allowed to: {_said(done)}",
        hint="let somebody sign whom the policy allows, or add the key to `allowed_signers` of the policy",
    )


def key_fingerprint(armored: str) -> str:
    """Fingerprint of the public key that the signature carries, as `ssh-keygen -l` shows it.

    Raises `SignatureRefused` for what is no signature of OpenSSH.
    """
    body = armored.strip().removeprefix(_BEGIN).removesuffix(_END)
    try:
        blob = base64.b64decode("".join(body.split()), validate=True)
        magic, version, length = struct.unpack_from(">6sII", blob)
    except (binascii.Error, struct.error, ValueError):
        magic, version, length, blob = b"", 0, 0, b""
    public = blob[14 : 14 + length]
    if magic != b"SSHSIG" or version != 1 or len(public) < length or not length:
        raise SignatureRefused("the signature is none of OpenSSH", hint="sign again")
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")


def _wrong(done: subprocess.CompletedProcess[bytes]) -> SignatureRefused:
    return SignatureRefused(
        f"the signature is not of this: {_said(done)}",
        hint="something was changed after it was signed; look what, and sign again",
    )


def _run(
    arguments: Sequence[str], message: bytes, *files: bytes, seconds: float = _TO_VERIFY
) -> subprocess.CompletedProcess[bytes]:
    """ssh-keygen with `message` on its standard input; {0}, {1} in the arguments are where it finds the `files`."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise SigningKeyUnusable("ssh-keygen is not installed", hint="install OpenSSH's client (openssh-client)")
    with ExitStack() as stack:
        pipes = [stack.enter_context(_readable(content)) for content in files]
        places = {f"{{{number}}}": f"/dev/fd/{pipe}" for number, pipe in enumerate(pipes)}
        try:
            return subprocess.run(
                [program, "-q", *(places.get(argument, argument) for argument in arguments)],
                input=message,
                capture_output=True,
                check=False,
                env=os.environ | {"LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"},
                pass_fds=pipes,
                start_new_session=True,  # without a terminal it cannot ask
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise SigningKeyUnusable(
                f"ssh-keygen did not answer within {seconds:g} seconds",
                hint="is ssh-agent, or a hardware key, waiting?",
            ) from None
        except OSError as error:
            raise SigningKeyUnusable(f"{program}: {error.strerror}", hint="is OpenSSH sound?") from None


@contextmanager
def _readable(content: bytes) -> Iterator[int]:
    """A pipe that holds `content` and then ends: of Linux, 65,536 bytes at most while nobody reads."""
    reading, writing = os.pipe()
    try:
        try:
            os.set_blocking(writing, False)
            with suppress(BlockingIOError):
                if os.write(writing, content) == len(content):
                    content = b""
        finally:
            os.close(writing)
        if content:
            raise SigningKeyUnusable(
                f"{len(content):,} bytes of signers or signature are more than a pipe holds", hint="name fewer signers"
            )
        yield reading
    finally:
        os.close(reading)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    """The reason it gave: its last line, or the one that is about permissions."""
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip(" @\r")]
    telling = [line for line in lines if line.startswith("Permissions ")] or lines[-1:]
    return plain("; ".join(telling) or f"exit status {done.returncode}")[:300]
