"""Value histograms, kept in safetensors files beside a profile.

Of a tensor of 16 bits an element or fewer, how often each pattern occurs: that is its distribution, exactly. Of a wider
one, how often each value of its upper 16 bits occurs. A tensor NAME has `NAME#patterns` (U8 or U16, ascending) and
`NAME#counts` (the narrowest unsigned integers that hold them); the files are `histograms-*.safetensors`, of a few MiB
each, so that writing them takes no memory to speak of.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner import fsio
from planner.checkpoint import encode_header, read_header
from planner.dtypes import NumberDtype, number_dtype
from planner.errors import CheckpointError, FileUnreadable
from planner.profile.outline import Outlined

__all__ = ["Histogram", "HistogramWriter", "Histograms"]

_PREFIX = "histograms-"
_FILE = 16 * 2**20
_SCHEMA = {"schema": "planner/histograms@1"}
_COUNTED = ("U8", "U16", "U32", "U64")


@dataclass(frozen=True)
class Histogram:
    """How often each pattern of a tensor occurs, or each value of the upper 16 bits of a wide one."""

    dtype: NumberDtype
    patterns: NDArray[np.int64]
    """Those that occur, ascending as integers; shape [k]."""
    counts: NDArray[np.int64]
    """How often each does; shape [k]."""

    @property
    def exact(self) -> bool:
        """Whether a pattern is a whole element."""
        return self.dtype.tabulable

    @property
    def table(self) -> NDArray[np.int64]:
        """The counts of all patterns, index = pattern; shape [2^bits]."""
        table = np.zeros(2 ** min(8 * self.dtype.itemsize, 16), np.int64)
        table[self.patterns] = self.counts
        return table

    def values(self) -> NDArray[np.float64]:
        """The value of each pattern; of a wide dtype, the one nearest to zero that begins with these 16 bits."""
        if self.exact:
            return self.dtype.decode_float64(self.patterns.astype(self.dtype.pattern))
        if self.dtype.name == "F32":
            with np.errstate(invalid="ignore"):
                return (self.patterns << 16).astype(np.uint32).view(np.float32).astype(np.float64)
        return (self.patterns << 48).astype(np.uint64).view(np.float64)  # wide integers are counted as float64

    def bins(self, most: int = 64) -> tuple[list[float], list[int]] | None:
        """Equal bins over the finite values: edges [n + 1] and counts [n]; None where there is nothing to draw.

        An integer or coarse dtype gets fewer, so that no bin is empty only because nothing can fall into it.
        """
        values = self.values()
        finite = np.isfinite(values)
        if not finite.any():
            return None
        values, counts = values[finite], self.counts[finite]
        low, high = float(values.min()), float(values.max())
        if low == high or not np.isfinite(high - low):
            return None
        heights, edges = np.histogram(
            values, bins=max(min(most, 2 * len(values)), 1), range=(low, high), weights=counts
        )
        return edges.tolist(), heights.astype(np.int64).tolist()


class HistogramWriter:
    """Writes the histograms of some tensors to files in a folder, a few MiB at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[tuple[str, str, bytes, int]] = []
        self._size = self._files = 0

    def add(self, name: str, counts: NDArray[np.int64]) -> None:
        """Add a tensor's counts, index = pattern; shape [2^8] or [2^16]. Raises `StorageError`."""
        patterns = np.flatnonzero(counts)
        found = counts[patterns]
        parts = {
            "patterns": patterns.astype(np.uint8 if len(counts) <= 2**8 else np.uint16),
            "counts": found.astype(np.min_scalar_type(int(found.max(initial=0)))),
        }
        for part, array in parts.items():
            raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
            self._waiting.append((f"{name}#{part}", f"U{8 * array.itemsize}", raw, len(array)))
            self._size += len(raw)
        if self._size >= _FILE:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting. Raises `StorageError`."""
        if self._waiting:
            header = encode_header([(name, dtype, (count,)) for name, dtype, _, count in self._waiting], _SCHEMA)
            path = self._folder / f"{_PREFIX}{self._files:05d}.safetensors"
            fsio.replace_file(path, b"".join([header, *(raw for _, _, raw, _ in self._waiting)]))
            self._files += 1
        self._waiting, self._size = [], 0


class Histograms:
    """The histograms in a folder and the folders in it."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers; a file that is none of ours, or damaged, is passed over."""
        self.files: list[Path] = []
        self._places: dict[str, tuple[Path, str, int, int]] = {}
        try:
            found = sorted(folder.rglob(f"{_PREFIX}*.safetensors"))
        except OSError:  # a cache that may not be read costs time, never the result
            found = []
        for path in found:
            try:
                header = read_header(path)
            except (CheckpointError, FileUnreadable):
                continue
            if header.metadata == _SCHEMA:
                self.files.append(path)
                for entry in header.entries:
                    self._places[entry.name] = (path, entry.dtype, entry.begin, entry.nbytes)

    @property
    def names(self) -> list[str]:
        """The tensors that have one."""
        return [name.removesuffix("#counts") for name in self._places if name.endswith("#counts")]

    def of(self, tensor: Outlined) -> Histogram | None:
        """The histogram of a tensor; None where none is kept, or it is not that of this tensor."""
        dtype = number_dtype(tensor.dtype)
        patterns, counts = self._array(f"{tensor.name}#patterns"), self._array(f"{tensor.name}#counts")
        if dtype is None or patterns is None or counts is None or len(patterns) != len(counts):
            return None
        if (np.diff(patterns) <= 0).any() or (patterns >= 2 ** min(8 * dtype.itemsize, 16)).any() or (counts < 0).any():
            return None
        found = Histogram(dtype, patterns, counts)
        return found if _agree(found, tensor) else None

    def copy_to(self, folder: Path) -> int:
        """Put the files into a folder, in place of those that are there; returns how many. Raises `StorageError`."""
        if any(path.parent.resolve() == folder.resolve() for path in self.files):
            return len(self.files)  # they are there
        for path in folder.glob(f"{_PREFIX}{5 * '[0-9]'}.safetensors"):
            fsio.remove_file(path)
        for number, path in enumerate(self.files):
            fsio.copy_file(path, folder / f"{_PREFIX}{number:05d}.safetensors")
        return len(self.files)

    def _array(self, name: str) -> NDArray[np.int64] | None:
        if name not in self._places:
            return None
        path, dtype, begin, nbytes = self._places[name]
        if dtype not in _COUNTED or nbytes > 2**16 * 8:
            return None
        try:
            with path.open("rb") as file:
                file.seek(begin)
                raw = file.read(nbytes)
        except OSError:
            return None
        kind = np.dtype(f"<u{int(dtype[1:]) // 8}")
        return np.frombuffer(raw, kind).astype(np.int64) if len(raw) == nbytes else None


def _agree(histogram: Histogram, tensor: Outlined) -> bool:
    """Whether a histogram can be that of this tensor: another of the same name and size may have been left behind."""
    values, counts = histogram.values(), histogram.counts
    finite = np.isfinite(values)
    if (counts.sum(), counts[~finite].sum()) != (tensor.elements, tensor.nan + tensor.inf):
        return False
    if not histogram.exact:
        return True
    there = values[finite]
    ends = (float(there.min()), float(there.max())) if len(there) else (None, None)
    return ends == (tensor.min, tensor.max) and int(counts[values == 0].sum()) == tensor.zeros
