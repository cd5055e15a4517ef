"""zstd (RFC 8878) for short runs of bytes whose size is known to who takes them back.

The size is known, so a hostile frame cannot make anybody reserve more than it. The objects of python-zstandard must not
be shared by threads: each thread has its own.
"""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

__all__ = ["Streams", "compress", "decompress", "size_of", "stream"]

_SIZE = struct.Struct("<I")


class _Codec(threading.local):
    def __init__(self) -> None:
        # What comes here has either no matches at all or long ones. So the search is the shortest there is, and finds
        # no match by chance, which would cost more than its letters one by one; the rest is the entropy coder's.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=10, write_checksum=False, write_content_size=True
        )
        self.compressor: Any = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor: Any = zstandard.ZstdDecompressor()


_CODEC = _Codec()


def compress(data: Any) -> bytes:
    """One zstd frame that says its size. Takes what has a contiguous buffer; releases the GIL."""
    compressed: bytes = _CODEC.compressor.compress(data)
    return compressed


def size_of(data: Any, most: int) -> int:
    """How many bytes a frame says it holds. Raises ValueError if it does not say, or says more than `most`."""
    try:
        size: int = zstandard.frame_content_size(data)
    except zstandard.ZstdError as error:
        raise ValueError(f"the compressed data are damaged: {error}") from None
    if not 0 <= size <= most:
        raise ValueError("the compressed data are of another size")
    return size


def decompress(data: Any, size: int) -> bytes:
    """The `size` bytes that a frame holds. Raises ValueError if it is damaged or holds another number of them."""
    if size_of(data, size) != size:  # read before a byte is reserved
        raise ValueError("the compressed data are of another size")
    try:
        plain: bytes = _CODEC.decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"the compressed data are damaged: {error}") from None
    if len(plain) != size:
        raise ValueError("the compressed data are of another size")
    return plain


def stream(plain: NDArray[np.uint8]) -> bytes:
    """Bytes [n] as a stream: their size, and they or a zstd frame of them, whichever is smaller."""
    compressed = compress(plain) if plain.size else b""
    content = compressed if len(compressed) < plain.size else plain.tobytes()
    return _SIZE.pack(len(content)) + content


class Streams:
    """Takes streams one after the other from what holds nothing else."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, size: int) -> NDArray[np.uint8]:
        """The `size` bytes of the next stream. Raises ValueError if they are not there."""
        if len(self._data) < _SIZE.size:
            raise ValueError("the frame is too short")
        (length,) = _SIZE.unpack_from(self._data)
        content, self._data = self._data[_SIZE.size : _SIZE.size + length], self._data[_SIZE.size + length :]
        if len(content) != length or length > size:
            raise ValueError("the frame is too short, or a part of it too long")
        return np.frombuffer(content if length == size else decompress(content, size), np.uint8)

    def finish(self) -> None:
        """Raises ValueError if there is more."""
        if len(self._data):
            raise ValueError("the frame goes on behind its end")
