"""The digest that identifies a checkpoint's weights and configuration.

It is taken over the configuration and every tensor's name, dtype, shape and bytes, in the order of the names. How the
tensors are spread over shards does not matter: the same weights have the same fingerprint, sharded or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from blake3 import blake3

from planner.checkpoint.folder import Checkpoint
from planner.errors import FileUnreadable

__all__ = ["digest_bytes", "digest_file", "fingerprint_checkpoint", "fingerprint_of", "tensor_digests"]

Progress = Callable[[int], None]


def digest_bytes(data: bytes) -> str:
    """`blake3:` and 64 hexadecimal digits."""
    return "blake3:" + blake3(data).hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a whole file, read in chunks. Raises `FileUnreadable`."""
    hasher = blake3()
    try:
        with path.open("rb") as file:
            while chunk := file.read(8 * 2**20):
                hasher.update(chunk)
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}", hint="check the disk, and its permissions") from None
    return "blake3:" + hasher.hexdigest()


def tensor_digests(checkpoint: Checkpoint, *, progress: Progress | None = None) -> dict[str, str]:
    """Digest of every tensor's bytes, by name. Reads every weight once; `progress` is told the bytes read."""
    digests = {}
    for name, tensor in checkpoint.tensors.items():
        hasher = blake3()
        for chunk in checkpoint.chunks(tensor):
            hasher.update(chunk)
            if progress:
                progress(len(chunk))
        digests[name] = "blake3:" + hasher.hexdigest()
    return digests


def fingerprint_of(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    """The fingerprint, from the digests of all tensors."""
    hasher = blake3()

    def add(*fields: str) -> None:
        # JSON quotes every field, so that no tensor name can imitate the end of a line.
        hasher.update(json.dumps(fields, ensure_ascii=True).encode() + b"\n")

    add("config", digest_bytes(checkpoint.config_bytes))
    for name in sorted(checkpoint.tensors):
        tensor = checkpoint.tensors[name]
        add("tensor", name, tensor.dtype, json.dumps(tensor.shape), digests[name])
    return "blake3:" + hasher.hexdigest()


def fingerprint_checkpoint(checkpoint: Checkpoint, *, progress: Progress | None = None) -> str:
    """The fingerprint, from the bytes on disk."""
    return fingerprint_of(checkpoint, tensor_digests(checkpoint, progress=progress))
