"""Undo data of versions before 0.6, which are only read.

undo.safetensors         for each tensor without a residual, its original bytes under its own name; tables, replaced
                         headers and small files
undo-00001.safetensors   residuals (`residuals`): each array has those of whole pieces of one tensor, bare
"""

from __future__ import annotations

import numpy as np

from planner.transaction.pieces import PIECE, Bytes
from planner.transaction.types import Residual
from planner.transaction.undo.data import UndoData, damaged
from planner.transaction.undo.residuals import Coding

__all__ = ["Originals", "Ranks"]


class Originals:
    """A tensor that is kept as it was."""

    in_any_order = True

    def __init__(self, data: UndoData, name: str) -> None:
        self._data, self._name = data, name

    def back(self, number: int, new: Bytes, old: Bytes) -> None:
        """Write piece `number` as it was into `old`; `new` says how large it is."""
        old[:] = np.frombuffer(self._data.read(self._name, number * PIECE, new.size), np.uint8)

    def finish(self, pieces: int) -> None:
        """There is nothing left to be asked."""


class Ranks:
    """A tensor that is got back from its new bytes, piece after piece and in no other order."""

    in_any_order = False

    def __init__(self, data: UndoData, residual: Residual, coding: Coding) -> None:
        """`coding` is that of the residual's table."""
        self._coding = coding
        self._arrays = iter(residual.arrays)
        self._data = data
        self._residual = np.empty(0, np.uint8)
        self._begin = 0

    def back(self, number: int, new: Bytes, old: Bytes) -> None:
        """Write into `old` what `new`, the next piece, was made from. Raises `LedgerDamaged`."""
        if self._begin == self._residual.size:
            self._begin = 0
            array = next(self._arrays, None)
            empty = np.empty(0, np.uint8)
            self._residual = (
                empty if array is None else np.frombuffer(bytearray().join(self._data.chunks(array)), np.uint8)
            )
        pattern = self._coding.pattern
        try:
            self._begin = self._coding.back(new.view(pattern), old.view(pattern), self._residual, self._begin)
        except ValueError as error:
            raise damaged(f"piece {number}: {error}") from None

    def finish(self, pieces: int) -> None:
        """Raises `LedgerDamaged` if there is more residual than tensor."""
        if self._begin != self._residual.size or next(self._arrays, None) is not None:
            raise damaged(f"there is more of a residual than of its {pieces} pieces")
