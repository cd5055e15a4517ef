"""What a portable patch makes of a tensor, found without writing a byte: its digests, and how far it moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from blake3 import blake3

from planner.checkpoint import Checkpoint, Tensor, TensorReader
from planner.dtypes import FloatDtype, float_dtype
from planner.errors import LedgerDamaged
from planner.transaction.pieces import PIECE, Bytes
from planner.transaction.portable.patch_file import PatchTensor, PortablePatch, damaged
from planner.transaction.undo.residuals import Coding
from planner.transaction.undo.way_back import Framed, piece_count

__all__ = ["Trial", "pieces_of", "square_sum", "usable"]


class Trial:
    """What is found of one tensor when its new bytes are made."""

    def __init__(self, dtype: FloatDtype) -> None:
        self._dtype = dtype
        self._hashers = blake3(), blake3()
        self.moved = self.was = 0.0
        """Σ (w' - w)² and Σ w², over elements that are finite before and after."""
        self.broken = 0
        """Elements that were finite, or were not there, and are not finite afterwards."""

    @property
    def before(self) -> str:
        """Digest of the old bytes."""
        return "blake3:" + self._hashers[0].hexdigest()

    @property
    def after(self) -> str:
        """Digest of the new ones."""
        return "blake3:" + self._hashers[1].hexdigest()

    @property
    def relative(self) -> float | None:
        """‖ΔW‖F / ‖W‖F; None where it has no bound."""
        if self.was > 0 and np.isfinite(ratio := self.moved / self.was):
            return float(np.sqrt(ratio))
        return 0.0 if self.moved == 0 else None

    def change(
        self,
        patch: PortablePatch,
        tensor: PatchTensor,
        checkpoint: Checkpoint,
        coding: Coding | None,
        told: Callable[[int], None],
    ) -> None:
        """Make all of a tensor that is there."""
        here = checkpoint.tensors[tensor.name]
        layer = Framed(patch.data, tensor.frames, here, None)
        for number, old in enumerate(pieces_of(checkpoint, here)):
            new = np.empty_like(old)
            if coding:
                coding.forth(old.view(coding.pattern), new.view(coding.pattern), None)
            else:
                with usable():
                    layer.back(number, old, new)
            self._add(old, new)
            told(old.size)

    def make(self, content: Iterator[bytes]) -> None:
        """All of a tensor that is new."""
        for piece in content:
            new = np.frombuffer(piece, np.uint8)
            self._add(np.zeros_like(new), new)

    def _add(self, old: Bytes, new: Bytes) -> None:
        for hasher, raw in zip(self._hashers, (old, new), strict=True):
            hasher.update(raw.data)
        was, now = (_values(self._dtype, raw) for raw in (old, new))
        finite = np.isfinite(was)
        both = finite & np.isfinite(now)
        self.broken += int(np.count_nonzero(finite & ~both))
        if not both.all():
            was, now = was[both], now[both]
        with np.errstate(over="ignore", invalid="ignore"):
            self.was += float(np.vdot(was, was))
            self.moved += float(np.vdot(now - was, now - was))


def square_sum(checkpoint: Checkpoint, without: Set[str], told: Callable[[int], None]) -> float:
    """Σ w² of all finite numbers in the other tensors."""
    square = 0.0
    for name, tensor in checkpoint.tensors.items():
        if name not in without and (dtype := float_dtype(tensor.dtype)) is not None:
            for piece in pieces_of(checkpoint, tensor):
                values = _values(dtype, piece)
                values = values[np.isfinite(values)]
                square += float(np.vdot(values, values))
                told(piece.size)
    return square


def pieces_of(checkpoint: Checkpoint, tensor: Tensor) -> Iterator[Bytes]:
    with closing(TensorReader(checkpoint)) as reader:
        for number in range(piece_count(tensor.nbytes)):
            old = np.empty(min(PIECE, tensor.nbytes - number * PIECE), np.uint8)
            reader.read_into(old.data, tensor, number * PIECE)
            yield old


def _values(dtype: FloatDtype, raw: Bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(dtype.decode(raw.view(dtype.pattern)), np.float64)


@contextmanager
def usable() -> Iterator[None]:
    """Frames and tables are read as undo data are; here they are of a file that can be made again."""
    try:
        yield
    except LedgerDamaged as error:
        raise damaged(error.message.removeprefix("the undo data ")) from None
