"""From the undo data of some patches to the changes that take them back.

A tensor that several patches changed goes back through them, newest first; its bytes as the oldest of them that keeps
all of them found them need no newer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from planner.checkpoint import Checkpoint
from planner.errors import LedgerDamaged
from planner.transaction.ledger import RECEIPT, patch_folder
from planner.transaction.residuals import PIECE, Coding
from planner.transaction.types import Receipt, Residual
from planner.transaction.undo import Backwards, UndoData
from planner.transaction.writing import Bytes, Change, Changes, Content

__all__ = ["changes_back"]


def changes_back(checkpoint: Checkpoint, patches: tuple[int, ...]) -> Changes:
    """What has to change for `patches`, the last ones in force, oldest first, to be taken back.

    Raises `LedgerDamaged` where undo data or receipts are missing or make no sense.
    """
    contents: dict[str, Content | None] = {}
    headers: dict[str, bytes] = {}
    files: dict[str, bytes | None] = {}
    for number in reversed(patches):
        folder = patch_folder(checkpoint.path, number)
        receipt, data = _receipt(folder), UndoData(folder)
        _refuse_unknown(checkpoint, receipt, data)
        codings: dict[str, Coding] = {}
        for tensor in receipt.tensors:
            if tensor.before is None:
                contents[tensor.name] = None
            elif tensor.undo is None:
                contents[tensor.name] = _original(data, tensor.name)
            else:
                table = tensor.undo.table
                codings[table] = codings.get(table) or data.table(table)
                newer = contents.get(tensor.name) or _present(checkpoint, tensor.name)
                contents[tensor.name] = _taken_back(newer, data, tensor.undo, codings[table])
        for file in receipt.files:
            old = None if file.undo is None else b"".join(data.chunks(file.undo))
            if file.part == "file":
                files[file.name] = old
            elif old is not None:
                headers[file.name] = old
    return Changes(
        tensors={name: Change(content=content) for name, content in contents.items() if content},
        removed=frozenset(name for name, content in contents.items() if content is None),
        headers=headers,
        files=files,
    )


def _receipt(folder: Path) -> Receipt:
    path = folder / RECEIPT
    try:
        return Receipt.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise LedgerDamaged(
            f"{path} cannot be read: {str(error).splitlines()[0]}", hint="restore it from a backup"
        ) from None


def _refuse_unknown(checkpoint: Checkpoint, receipt: Receipt, data: UndoData) -> None:
    """Raise `LedgerDamaged` for undo data of tensors that are not here, or not in the receipt, and the other way."""
    ours = {file.undo for file in receipt.files}
    for tensor in receipt.tensors:
        if tensor.undo:
            ours |= {tensor.undo.table, *tensor.undo.arrays}
        elif tensor.before is not None:
            ours.add(tensor.name)
    unknown = [name for name in data.names if name not in ours]
    unknown += [tensor.name for tensor in receipt.tensors if tensor.name not in checkpoint.tensors]
    if unknown:
        raise LedgerDamaged(
            f"the undo data is of tensors that are not here: {', '.join(unknown[:5])}",
            hint="restore the ledger from a backup",
        )
    for tensor in receipt.tensors:
        if tensor.before is not None and tensor.undo is None:
            present = checkpoint.tensors[tensor.name]
            if data.nbytes(tensor.name) != present.nbytes:
                raise LedgerDamaged(
                    f"the undo data of {tensor.name} have another size", hint="restore the ledger from a backup"
                )


def _original(data: UndoData, name: str) -> Content:
    return lambda: (np.frombuffer(bytearray(chunk), np.uint8) for chunk in data.chunks(name))


def _present(checkpoint: Checkpoint, name: str) -> Content:
    tensor = checkpoint.tensors[name]
    return lambda: (np.frombuffer(bytearray(chunk), np.uint8) for chunk in checkpoint.chunks(tensor, size=PIECE))


def _taken_back(newer: Callable[[], Iterator[Bytes]], data: UndoData, residual: Residual, coding: Coding) -> Content:
    def content() -> Iterator[Bytes]:
        backwards = Backwards(data, residual, coding)
        for new in newer():
            old = np.empty_like(new)
            backwards.take_back(new, old)
            yield old
        backwards.finish()

    return content
