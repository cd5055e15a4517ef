"""Undo data: what a patch destroys, kept in the ledger.

This version keeps the original bytes of every tensor that changes, as a safetensors file under the tensors' own names,
so that any tool can read it. It is written from the source and proven against the source's digests before the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from planner import fsio
from planner.checkpoint import Checkpoint, encode_header, open_checkpoint
from planner.errors import CheckpointError, LedgerDamaged
from planner.transaction.ledger import UNDO
from planner.transaction.stage import Content

__all__ = ["undo_contents", "write_undo"]


def write_undo(folder: Path, checkpoint: Checkpoint, names: Iterable[str], digests: dict[str, str]) -> int:
    """Write the bytes of the tensors `names` to `folder`, read them back and compare. Returns the file's size.

    Raises `StorageError` if what comes back is not what `digests` say.
    """
    tensors = [checkpoint.tensors[name] for name in names]
    header = encode_header([(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors], {"format": "pt"})

    def content() -> Iterator[bytes]:
        yield header
        for tensor in tensors:
            yield from checkpoint.chunks(tensor)

    fsio.create_file(folder / UNDO, content())
    try:
        kept = undo_contents(folder)
        wrong = [tensor.name for tensor in tensors if _digest(kept[tensor.name]()) != digests[tensor.name]]
        with fsio.storage_errors(folder / UNDO), (folder / UNDO).open("rb") as file:
            wrong += [UNDO] if file.read(len(header)) != header else []
    except (LedgerDamaged, KeyError):
        wrong = [UNDO]
    if wrong:
        raise fsio.not_as_written(f"undo data of {', '.join(wrong[:5])}")
    return (folder / UNDO).stat().st_size


def undo_contents(folder: Path) -> dict[str, Content]:
    """The original bytes of every tensor that the patch in `folder` changed. Raises `LedgerDamaged`."""
    path = folder / UNDO
    if not path.is_file():
        raise LedgerDamaged(f"the undo data {path} is missing", hint=_FROM_BACKUP)
    try:
        kept = open_checkpoint(folder)
    except CheckpointError as error:
        raise LedgerDamaged(f"the undo data cannot be read: {error.message}", hint=_FROM_BACKUP) from None
    return {name: _content(kept, name) for name in kept.tensors}


_FROM_BACKUP = "restore it from a backup"


def _content(kept: Checkpoint, name: str) -> Content:
    return lambda: kept.chunks(kept.tensors[name])


def _digest(chunks: Iterator[bytes]) -> str:
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return "blake3:" + hasher.hexdigest()
