"""Pieces of weights before and after an edit, and the way through frames and back, for the tests of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from planner.checkpoint import TensorReader, open_checkpoint
from planner.dtypes import FLOATS
from planner.transaction.undo.frames import Framing
from planner.transaction.undo.residuals import PIECE, Coding

__all__ = [
    "EDITS",
    "ODD",
    "STORAGE",
    "bytes_of",
    "edited",
    "part",
    "rounded",
    "table_of",
    "there_and_back",
    "weights_of",
]

STORAGE = {name: dtype.storage for name, dtype in FLOATS.items()}
ODD = {  # signed zeros, the smallest and largest subnormals, infinities, quiet and signalling NaN with payloads
    16: [0x0000, 0x8000, 0x0001, 0x007F, 0x807F, 0x7F80, 0xFF80, 0x7FC1, 0xFF81, 0x7C00, 0xFC00, 0x7E05, 0xFC01],
    32: [0, 1 << 31, 1, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC00123, 0xFF800001, 0x7F7FFFFF],
    64: [0, 1 << 63, 1, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8_0000_0000_0077, 0xFFF0_0000_0000_0001, (0x7FF0 << 48) - 1],
}
Bytes = Any


def bytes_of(array: Any) -> Bytes:
    """An array's bytes as uint8."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def there_and_back(framing: Framing, wanted: Bytes, given: Bytes, **options: Any) -> list[bytes]:
    """The frames of all pieces, each of which was decoded and compared."""
    frames = []
    for begin in range(0, max(wanted.size, 1), PIECE):
        piece, other = wanted[begin : begin + PIECE], given[begin : begin + PIECE]
        frame = framing.encode(piece, other, begin, **options)
        assert len(frame) <= piece.size + 1
        decoded = np.full_like(piece, 0xA5)
        framing.decode(frame, other, begin, decoded)
        assert np.array_equal(decoded, piece)
        frames.append(frame)
    return frames


def part(frames: list[bytes], whole: Bytes) -> float:
    """The size of frames, in parts of what they stand for."""
    return sum(map(len, frames)) / whole.size


def rounded(values: Any, dtype: str) -> Bytes:
    """Bytes of values in that dtype, by way of float32 but for F64."""
    with np.errstate(all="ignore"):
        return bytes_of(np.asarray(values, FLOATS[dtype].working).astype(STORAGE[dtype]))


def table_of(dtype: str, factor: float) -> Coding:
    """The table of a multiplication."""
    kind = FLOATS[dtype]
    patterns = kind.all_patterns()
    values = kind.decode(patterns)
    with np.errstate(all="ignore"):
        return Coding(np.where(np.isnan(values), patterns, kind.encode(values * np.float32(factor))))


def weights_of(model: Path, dtype: str) -> Any:
    """All weights of a checkpoint of that dtype in a row, in float32."""
    checkpoint = open_checkpoint(model)
    parts = []
    with TensorReader(checkpoint) as reader:
        for tensor in checkpoint.tensors.values():
            raw = np.empty(tensor.nbytes, np.uint8)
            reader.read_into(raw.data, tensor, 0)
            parts.append(raw.view(STORAGE[dtype]).astype(np.float32))
    return np.concatenate(parts)


EDITS = [  # the edit, the dtype, the most that undo and a patch may take of the bytes; measured are four fifths or less
    ("one factor", "BF16", 0.01, 0.001),
    ("one factor", "F32", 0.006, 0.001),
    ("one factor", "F16", 0.015, 0.001),
    ("one factor", "F64", 0.012, 0.01),
    ("factors by row", "BF16", 0.03, 0.003),
    ("factors by row", "F32", 0.015, 0.002),
    ("factors by column", "BF16", 0.035, 0.01),
    ("factors by column", "F32", 0.02, 0.01),
    ("factors and offsets by row", "BF16", 0.08, 0.05),
    ("20 rows", "BF16", 0.004, 0.001),
    ("project_out of rows", "BF16", 0.04, 0.03),
    ("project_out of rows", "F32", 0.04, 0.04),
    ("project_out of columns", "BF16", 0.035, 0.03),
    ("rank_one", "BF16", 0.055, 0.045),
    ("rotate", "BF16", 0.045, 0.04),
    ("rank 8", "BF16", 0.15, 0.15),
    ("a tenth of the values", "F32", 0.09, 0.09),
    ("a thousandth of noise", "BF16", 0.16, 0.16),
    ("other values", "BF16", 0.8, 0.8),
    ("other bits", "BF16", 0.8, 1.00001),
]


def edited(trained: Any, edit: str, dtype: str) -> tuple[Bytes, Bytes]:
    """Bytes before and after; F32 and F64 have their own digits throughout."""
    generator = np.random.default_rng(5)
    rows, columns = trained.shape
    values = trained.astype(np.float64)
    if dtype in ("F32", "F64"):
        values = values * generator.uniform(0.5, 1, values.shape)
    old = rounded(values, dtype)
    values = old.view(STORAGE[dtype]).astype(np.float64).reshape(rows, columns)
    working = FLOATS[dtype].working.type
    by_row, by_column = generator.uniform(0.9, 1.1, (2, max(rows, columns))).astype(np.float32)
    u, v = generator.standard_normal((rows, 2)), generator.standard_normal((columns, 2))
    u, v = np.linalg.qr(u)[0], np.linalg.qr(v)[0]
    if edit == "one factor":
        after = values.astype(working) * working(1.02)
    elif edit == "factors by row":
        after = values.astype(working) * by_row[:rows, None]
    elif edit == "factors by column":
        after = values.astype(working) * by_column[:columns]
    elif edit == "factors and offsets by row":
        after = values * by_row[:rows, None] + by_row[rows - 1 :: -1, None][:rows] * 0.01
    elif edit == "20 rows":
        after = values.copy()
        after[generator.choice(rows, 20, replace=False)] *= 0.7
    elif edit == "project_out of rows":
        after = values - u[:, :1] @ (u[:, :1].T @ values)
    elif edit == "project_out of columns":
        after = values - (values @ v[:, :1]) @ v[:, :1].T
    elif edit == "rank_one":
        after = values + 0.01 * np.sqrt(rows * columns) * u[:, :1] @ v[:, :1].T
    elif edit == "rotate":
        turn = np.array([[np.cos(0.5) - 1, -np.sin(0.5)], [np.sin(0.5), np.cos(0.5) - 1]])
        after = values + (values @ v) @ turn @ v.T
    elif edit == "rank 8":
        after = values + 1e-3 * generator.standard_normal((rows, 8)) @ generator.standard_normal((8, columns))
    elif edit == "a tenth of the values":
        after = np.where(np.abs(values) > np.quantile(np.abs(values), 0.9), values * 1.02, values)
    elif edit == "a thousandth of noise":
        after = values + 1e-3 * values.std() * generator.standard_normal(values.shape)
    elif edit == "other values":
        after = values.std() * generator.standard_normal(values.shape)
    else:
        return old, generator.integers(0, 256, old.size).astype(np.uint8)
    return old, rounded(after, dtype)
