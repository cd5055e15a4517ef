"""The payload of frames that know the values: differences from a prediction, and elements in planes of bytes.

`frames` says how they lie. The encoder estimates both from what the choice of a predictor has counted, and makes the
one that promises less.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.dtypes import FLOATS
from planner.transaction.undo import predicting_kernels as kernels
from planner.transaction.undo.compressing import Streams, stream
from planner.transaction.undo.fitting import fit, left_over, letter_bits
from planner.transaction.undo.predicting import NONE, Arithmetic, Grid, Prediction, scratch

__all__ = ["Differing"]

Patterns = NDArray[np.unsignedinteger[Any]]
Bytes = NDArray[np.uint8]

_HEAD = struct.Struct("<BBII")  # predictor, layout, differences that are not 0, size of the gaps
_DENSE, _SPARSE = 0, 1
_OFTEN = 0.5  # of the elements: where more differ, gaps are no gain
_HARDLY = 0.98  # of the piece: what promises no less is not tried
_SAMPLE = 8192  # elements


class Differing:
    """Frames of one tensor, from elements and without their mode."""

    def __init__(self, dtype: str, pattern: np.dtype[Any], length: int) -> None:
        """`pattern` is the unsigned integer of an element, `length` the number of elements of a row."""
        self._pattern, self._length = pattern, length
        self._arithmetic = Arithmetic(FLOATS[dtype]) if dtype in FLOATS else None
        self._infinity = pattern.type(self._arithmetic.infinity if self._arithmetic else 0)

    def encode(self, wanted: Patterns, given: Patterns, first: int) -> tuple[bytes | None, bytes | None]:
        """The payloads of a predicted and of a packed frame; None for what promises nothing.

        `first` is the number of the piece's first element.
        """
        grid = self._grid(first, wanted.size)
        if self._arithmetic:
            prediction, bits = fit(self._arithmetic, given, wanted, grid)
        else:
            prediction = Prediction(NONE, np.empty(0, np.float32))
            part = slice((begin := max(wanted.size - _SAMPLE, 0) // 2), begin + _SAMPLE)
            bits = left_over(0, wanted[part], given[part], given[part]) * wanted.size / wanted[part].size
        step = max(wanted.size // _SAMPLE, 1)
        some = np.ascontiguousarray(wanted[::step])
        packed_bits = sum(letter_bits(plane) for plane in _planes(some)) * wanted.size / some.size
        if min(bits, packed_bits) > _HARDLY * 8 * wanted.nbytes:
            return None, None
        if packed_bits < bits:
            return None, _to_planes(wanted)
        return self._differences(prediction, wanted, given, grid), None

    def decode(self, payload: memoryview, given: Patterns, first: int, wanted: Patterns) -> None:
        """Write the wanted elements of a predicted frame. Raises ValueError if it is none."""
        if len(payload) < _HEAD.size:
            raise ValueError("the frame is too short")
        predictor, layout, count, gaps = _HEAD.unpack_from(payload)
        if layout not in (_DENSE, _SPARSE) or count > wanted.size or gaps > count + wanted.size // 255:
            raise ValueError("the frame is none of a prediction")
        grid = self._grid(first, wanted.size)
        streams = Streams(payload[_HEAD.size :])
        predicted = given
        if predictor != NONE:
            if not self._arithmetic:
                raise ValueError(f"there is no predictor {predictor} for such a tensor")
            kind = self._arithmetic.stored
            integers = _from_planes(streams, self._arithmetic.room(predictor, grid) // kind.itemsize, kind.itemsize)
            predicted = self._arithmetic.predict(Prediction(predictor, integers.view(kind)), given, grid)
        if layout == _DENSE:
            found = _from_planes(streams, wanted.size, wanted.itemsize)
        else:
            found = scratch("found", wanted.size, self._pattern)
            found[:] = 0
            places = streams.take(gaps).copy() if count else np.empty(0, np.uint8)
            values = _from_planes(streams, count, wanted.itemsize) if count else found[:0]
            if not kernels.scatter(places, values, found):
                raise ValueError("the differences are not as many as said")
        streams.finish()
        kernels.restore(found, predicted, given, self._infinity, wanted)

    def unpack(self, payload: memoryview, wanted: Patterns) -> None:
        """Write the elements of a packed frame. Raises ValueError if it is none."""
        streams = Streams(payload)
        wanted[:] = _from_planes(streams, wanted.size, wanted.itemsize)
        streams.finish()

    def _grid(self, first: int, count: int) -> Grid:
        return Grid(first % self._length, self._length, count)

    def _differences(self, prediction: Prediction, wanted: Patterns, given: Patterns, grid: Grid) -> bytes:
        predicted = self._arithmetic.predict(prediction, given, grid) if self._arithmetic else given
        found = scratch("found", wanted.size, self._pattern)
        count = int(kernels.differences(wanted, predicted, given, self._infinity, found))
        parts = []
        if prediction.predictor != NONE:
            parts.append(_to_planes(prediction.parameters.view(f"<u{prediction.parameters.itemsize}")))
        layout = _SPARSE if count <= _OFTEN * wanted.size else _DENSE
        size = 0
        if layout == _DENSE:
            parts.append(_to_planes(found))
        elif count:
            gaps = scratch("gaps", count + wanted.size // 255 + 1, np.uint8)
            values = scratch("values", wanted.size + 1, self._pattern)
            size = int(kernels.gather(found, gaps, values))
            parts += [stream(gaps[:size]), _to_planes(values[:count])]
        return b"".join([_HEAD.pack(prediction.predictor, layout, count, size), *parts])


def _planes(elements: Patterns) -> Bytes:
    """The bytes of elements [n], [width, n]."""
    return np.ascontiguousarray(elements.view(np.uint8).reshape(-1, elements.itemsize).T)


def _to_planes(elements: Patterns) -> bytes:
    return b"".join(stream(plane) for plane in _planes(elements))


def _from_planes(streams: Streams, count: int, width: int) -> Patterns:
    """The elements [count] again. Raises ValueError if they are not there."""
    elements = np.empty((count, width), np.uint8)
    for number in range(width):
        elements[:, number] = streams.take(count)
    return elements.reshape(-1).view(f"<u{width}")
