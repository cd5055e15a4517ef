"""Rows, columns and blocks of stored matrices as float64, a bounded number of elements at a time.

The rows of a stored matrix lie one after the other, so that some of them are read by themselves. Some of its columns
need a pass over all of it, once for all that are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.checkpoint import Checkpoint, Tensor, TensorReader
from planner.checkpoint.header import shown
from planner.dtypes import FloatDtype, float_dtype

__all__ = ["MOST_ELEMENTS", "StoredMatrices", "WordsUnknown"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

MOST_ELEMENTS = 4 * 2**20
"""Elements of a matrix that are held at once: 32 MiB of float64, and perhaps two copies of it on the way."""


class WordsUnknown(Exception):
    """What is asked for cannot be read from the weights; the message says why, without a full stop."""


class StoredMatrices:
    """The tensors of one checkpoint as float64."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def blocks(self, name: str, *, width: int = 0) -> Iterator[tuple[int, Floats]]:
        """The matrix in blocks of whole rows: the number of the first one, and [rows, columns].

        A block has at most `MOST_ELEMENTS` elements, also where each of its rows is turned into `width` numbers.
        """
        tensor, dtype = self._matrix(name)
        rows, columns = tensor.shape
        step = max(1, MOST_ELEMENTS // max(columns, width, 1))
        with TensorReader(self._checkpoint) as reader:
            for first in range(0, rows, step):
                yield first, _read(reader, tensor, dtype, first, min(step, rows - first))

    def rows(self, name: str, indices: Sequence[int] | Indices) -> Floats:
        """[indices, columns]: these rows, each read by itself."""
        tensor, dtype = self._matrix(name)
        found = np.empty((len(indices), tensor.shape[1]), dtype=np.float64)
        with TensorReader(self._checkpoint) as reader:
            for place, row in enumerate(indices):
                found[place] = _read(reader, tensor, dtype, int(row), 1)[0]
        return found

    def columns(self, name: str, indices: Sequence[int] | Indices) -> Floats:
        """[rows, indices]: these columns, in one pass over the matrix."""
        tensor, _ = self._matrix(name)
        found = np.empty((tensor.shape[0], len(indices)), dtype=np.float64)
        for first, block in self.blocks(name):
            found[first : first + len(block)] = block[:, indices]
        return found

    def vector(self, name: str) -> Floats:
        """All elements of a tensor, such as a norm's weight, as one vector."""
        tensor, dtype = self._tensor(name)
        if tensor.elements > MOST_ELEMENTS:
            raise WordsUnknown(f"{shown(name)} is too large for a vector")
        return dtype.decode_float64(dtype.patterns(b"".join(self._checkpoint.chunks(tensor))))

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        tensor, _ = self._matrix(name)
        return tensor.shape[0], tensor.shape[1]

    def _matrix(self, name: str) -> tuple[Tensor, FloatDtype]:
        tensor, dtype = self._tensor(name)
        if len(tensor.shape) != 2:
            raise WordsUnknown(f"{shown(name)} has {len(tensor.shape)} dimensions; only matrices are read here")
        return tensor, dtype

    def _tensor(self, name: str) -> tuple[Tensor, FloatDtype]:
        tensor = self._checkpoint.tensors.get(name)
        if tensor is None:
            raise WordsUnknown(f"there is no {shown(name)}")
        dtype = float_dtype(tensor.dtype)
        if dtype is None:
            raise WordsUnknown(f"{shown(name)} holds {tensor.dtype}, whose values are not read here")
        return tensor, dtype


def _read(reader: TensorReader, tensor: Tensor, dtype: FloatDtype, first: int, count: int) -> Floats:
    """[count, columns]: rows from `first` on."""
    columns = tensor.shape[1]
    data = bytearray(count * columns * dtype.itemsize)
    reader.read_into(memoryview(data), tensor, first * columns * dtype.itemsize)
    return dtype.decode_float64(dtype.patterns(data)).reshape(count, columns)
