"""The small arrays that a plan reads, kept with the record of the patch: it says nothing without them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from planner import fsio
from planner.checkpoint import digest_bytes
from planner.transaction.ledger import PLAN, RECEIPT, write_record

__all__ = ["keep_arrays"]

_LARGEST = 64 * 2**20


def keep_arrays(wanted: Mapping[str, str], folder: Path, patch: Path) -> None:
    """Copy the files of arrays that lie beside the plan, in `folder`, into the record `patch`.

    `wanted` has the digest of each, as the check read it. Files elsewhere (of an absolute path, in a folder) and files
    of more than 64 MiB stay where they are; the plan names them. Raises `StorageError`.
    """
    for name, digest in wanted.items():
        path = folder / name
        if Path(name).name != name or name in (PLAN, RECEIPT) or name.startswith("undo"):
            continue
        with fsio.storage_errors(path):
            content = path.read_bytes() if path.stat().st_size <= _LARGEST else None
        if content is None:
            continue
        if digest_bytes(content) != digest:
            raise fsio.not_as_written(name)
        write_record(patch / name, content)
