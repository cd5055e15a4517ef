"""The way back through patches: from the bytes of a tensor as they are to what they were before each of them.

A tensor that several patches changed goes back through them, newest first, piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import ValidationError

from planner.checkpoint import Checkpoint, Tensor, TensorReader
from planner.errors import LedgerDamaged
from planner.transaction.ledger import RECEIPT, patch_folder
from planner.transaction.pieces import PIECE, Bytes, Change, Changes, Content
from planner.transaction.types import Frames, Receipt, ReceiptTensor
from planner.transaction.undo.data import FrameReader, UndoData, damaged
from planner.transaction.undo.earlier import Originals, Ranks
from planner.transaction.undo.frames import Framing
from planner.transaction.undo.replaced import Replaced, refuse_unproven
from planner.transaction.undo.residuals import Coding

__all__ = ["Framed", "Layer", "WayBack", "piece_count", "read_receipt", "through", "way_back"]


class Layer(Protocol):
    """What one patch keeps of one tensor."""

    @property
    def in_any_order(self) -> bool:
        """Whether pieces may be asked for in any order, and more than once."""
        ...

    def back(self, number: int, new: Bytes, old: Bytes) -> None:
        """Write piece `number` into `old` as it was before the patch; `new` is the piece after it.

        Raises `LedgerDamaged` or a `StorageError`.
        """
        ...

    def finish(self, pieces: int) -> None:
        """Raises `LedgerDamaged` if there is more than these pieces, all of which were asked for."""
        ...


class Framed:
    """A tensor of which each piece has a frame."""

    in_any_order = True

    def __init__(self, data: UndoData, frames: Frames, tensor: Tensor, coding: Coding | None) -> None:
        self._frames = FrameReader(data, frames.parts)
        self._framing = Framing(tensor.dtype, tensor.shape, coding)

    def back(self, number: int, new: Bytes, old: Bytes) -> None:
        """As `Layer` has it."""
        try:
            self._framing.decode(self._frames.frame(number), new, number * PIECE, old)
        except ValueError as error:
            raise damaged(str(error)) from None

    def finish(self, pieces: int) -> None:
        """As `Layer` has it."""
        self._frames.finish(pieces)


@dataclass
class WayBack:
    """Everything that some patches, the last ones in force, changed."""

    layers: dict[str, list[Callable[[], Layer]]] = field(default_factory=dict)
    """By tensor, the newest patch first."""
    gone: set[str] = field(default_factory=set)
    """Tensors that were not there before."""
    headers: dict[str, bytes] = field(default_factory=dict)
    """As they were, by shard."""
    files: dict[str, bytes | None] = field(default_factory=dict)
    """As they were; None for one that was not there."""
    replaced: list[Replaced] = field(default_factory=list)
    """Headers and files as each patch found them, those of the newest patch first."""

    def changes(self, checkpoint: Checkpoint) -> Changes:
        """What has to change in the checkpoint for the patches to be taken back.

        Raises `LedgerDamaged` for a header or file that no patch can have replaced, or that is not what it was.
        """
        refuse_unproven(checkpoint, self.replaced)
        contents = {
            name: _content(checkpoint, checkpoint.tensors[name], layers)
            for name, layers in self.layers.items()
            if name not in self.gone
        }
        return Changes(
            tensors={name: Change(content=content) for name, content in contents.items()},
            removed=frozenset(self.gone),
            headers=self.headers,
            files=self.files,
        )


def way_back(records: Path, checkpoint: Checkpoint, patches: Sequence[int]) -> WayBack:
    """The way back through `patches`, oldest first, whose records lie in the folder `records` (a checkpoint or stage).

    Raises `LedgerDamaged` where undo data or receipts are missing or make no sense.
    """
    way = WayBack()
    for number in reversed(patches):
        folder = patch_folder(records, number)
        receipt, data = read_receipt(folder), UndoData.of(folder)
        _refuse_unknown(checkpoint, receipt, data)
        tables: dict[str, Coding] = {}
        for tensor in receipt.tensors:
            if tensor.before is None:
                way.gone.add(tensor.name)
                way.layers.pop(tensor.name, None)
            else:
                layer = _layer(checkpoint.tensors[tensor.name], tensor, data, tables)
                way.layers.setdefault(tensor.name, []).append(layer)
        for file in receipt.files:
            old = None if file.undo is None else b"".join(data.chunks(file.undo))
            way.replaced.append(Replaced(number, file, old))
            if file.part == "file":
                way.files[file.name] = old
            elif old is not None:
                way.headers[file.name] = old
    return way


def through(layers: Sequence[Layer], number: int, now: Bytes) -> Bytes:
    """Piece `number` as it was before all `layers`, newest first; `now` itself where there is none."""
    for layer in layers:
        old = np.empty_like(now)
        layer.back(number, now, old)
        now = old
    return now


def piece_count(nbytes: int) -> int:
    """How many pieces a tensor of so many bytes has; one of none has one."""
    return max(-(-nbytes // PIECE), 1)


def read_receipt(folder: Path) -> Receipt:
    """The receipt in the record of a patch. Raises `LedgerDamaged`."""
    path = folder / RECEIPT
    try:
        return Receipt.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise LedgerDamaged(
            f"{path} cannot be read: {str(error).splitlines()[0]}", hint="restore it from a backup"
        ) from None


def _layer(tensor: Tensor, receipt: ReceiptTensor, data: UndoData, tables: dict[str, Coding]) -> Callable[[], Layer]:
    undo = receipt.undo
    if undo is None:
        return lambda: Originals(data, tensor.name)
    coding = None
    if undo.table is not None:
        coding = tables[undo.table] = tables.get(undo.table) or data.table(undo.table)
        dtype_size = tensor.nbytes // max(tensor.elements, 1)
        if tensor.elements and coding.pattern.itemsize != dtype_size:
            raise damaged(f"{tensor.name} has elements of {dtype_size} bytes, its table has not")
    if isinstance(undo, Frames):
        return lambda: Framed(data, undo, tensor, coding)
    if coding is None:
        raise damaged(f"{tensor.name} has no table")
    return lambda: Ranks(data, undo, coding)


def _refuse_unknown(checkpoint: Checkpoint, receipt: Receipt, data: UndoData) -> None:
    """Raise `LedgerDamaged` for undo data of tensors that are not here, or not in the receipt, and the other way."""
    ours = {file.undo for file in receipt.files}
    for tensor in receipt.tensors:
        if isinstance(tensor.undo, Frames):
            ours |= {tensor.undo.table, *(array for array, _, _ in tensor.undo.parts)}
        elif tensor.undo:
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


def _content(checkpoint: Checkpoint, tensor: Tensor, layers: Sequence[Callable[[], Layer]]) -> Content:
    def content() -> Iterator[Bytes]:
        ways = [layer() for layer in layers]
        with closing(TensorReader(checkpoint)) as reader:
            for number in range(piece_count(tensor.nbytes)):
                now = np.empty(min(PIECE, tensor.nbytes - number * PIECE), np.uint8)
                reader.read_into(now.data, tensor, number * PIECE)
                yield through(ways, number, now)
        for way in ways:
            way.finish(piece_count(tensor.nbytes))

    return content
