"""Dtypes of 32 and 64 bits: moments in one pass, order statistics by a second look at the few buckets they lie in.

The pass counts the upper 16 bits of each element. In the order of the values these bits are the first digit of a
radix selection (Knuth, The Art of Computer Programming 3, 5.2.5), which the second look carries on: one more reading
decides a float32, three a float64. 32- and 64-bit integers are described as the float64 they become.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.dtypes.floats import Patterns
from planner.profile.kernels import MOMENTS, TALLIES, count_digits, merge_moments, runs_of, tally_wide
from planner.profile.statistics import Moments, ranks_of, statistics_from
from planner.profile.tallies.base import Described, Matrix, Scratch, SecondLook, Tally
from planner.profile.types import OUTLIER_ORDERS, Statistics

__all__ = ["WideTally"]

_LARGEST_SORTED = 2**23
_SORTING = threading.Lock()  # one at a time: it takes up to 64 MiB
_SAFE = 2.0**200  # magnitudes whose fourth powers, summed, stay well inside float64, and whose inverses do
_DIGIT = 16


class _Float(NamedTuple):
    width: int
    bits: type[np.unsignedinteger[Any]]
    value: type[np.floating[Any]]
    infinity: int  # its upper 16 bits

    @property
    def normal(self) -> np.floating[Any]:
        return self.value(np.finfo(self.value).smallest_normal)


_FLOAT32 = _Float(32, np.uint32, np.float32, 0x7F80)
_FLOAT64 = _Float(64, np.uint64, np.float64, 0x7FF0)


class WideTally(Tally):
    """Accumulates the moments of one matrix, each element multiplied by `unit`, a power of two."""

    def __init__(self, matrix: Matrix, unit: float = 1.0) -> None:
        super().__init__(matrix)
        self._float = _FLOAT32 if matrix.dtype.name == "F32" else _FLOAT64
        self._unit = unit
        self._moments = np.zeros(MOMENTS)
        self._low, self._high = np.inf, -np.inf
        self._odd = np.zeros(TALLIES, np.int64)
        self._upper = np.zeros(2**_DIGIT, np.int64)

    def count(self, scratch: Scratch, patterns: Patterns, first: int) -> None:
        """Count a piece that begins at the place `first`. Releases the GIL."""
        scratch.clear(self.matrix, first, len(patterns), np.float64)
        form, bits = self._float, self._bits(patterns)
        tally_wide(
            bits,
            bits.view(form.value),
            form.width - _DIGIT,
            first,
            self.matrix.columns,
            self._unit,
            form.normal,
            scratch.spare["f4" if form is _FLOAT32 else "f8"],
            scratch.moments,
            scratch.extremes,
            scratch.tallies,
            scratch.counts,
            scratch.rows,
            scratch.columns,
            scratch.keys,
            scratch.patterns,
            scratch.places,
        )

    def _merge(self, scratch: Scratch) -> None:
        low, high = scratch.extremes.tolist()
        self._add(scratch.moments, low, high, scratch.tallies)
        self._fold(scratch, self._upper)

    def _absorb(self, part: WideTally) -> None:
        self._add(part._moments, part._low, part._high, part._odd)
        self._upper += part._upper

    def _add(self, moments: NDArray[np.float64], low: float, high: float, odd: NDArray[np.int64]) -> None:
        merge_moments(self._moments, moments)
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._odd += odd

    def _values(self, patterns: NDArray[np.int64]) -> NDArray[np.float64]:
        return patterns.astype(self._float.bits).view(self._float.value).astype(np.float64)

    def finish(self, again: SecondLook) -> Described:
        """The result. Reads the elements again once (32 bits) or three times (64 bits), and once to sort a small one.

        Once more where magnitudes are so large or small that their powers leave float64.
        """
        largest = max(-self._low, self._high)
        if self._unit == 1.0 and 0 < largest < np.inf and not 1 / _SAFE < largest < _SAFE:
            return self._in_another_unit(2.0 ** -int(np.clip(np.frexp(largest)[1], -1022, 1022)), again)
        if self._norms:
            self._norms.scale(self._unit)
        return Described(self._statistics(again), self._norms, self._largest_elements(), self._upper)

    def _in_another_unit(self, unit: float, again: SecondLook) -> Described:
        tally, scratch, first = WideTally(self.matrix, unit), Scratch(), 0
        for patterns in again():
            tally.count(scratch, patterns, first)
            tally.merge(scratch, first)
            first += len(patterns)
        return tally.finish(again)

    def _statistics(self, again: SecondLook) -> Statistics:
        names = ("zeros", "negative_zeros", "subnormals", "nan", "inf", "negative_inf")
        odd = dict(zip(names, self._odd.tolist(), strict=True))
        if not self._moments[0]:
            return Statistics(**odd)
        moments = Moments.of(self._moments, low=self._low, high=self._high, unit=self._unit)
        beyond = np.zeros(len(OUTLIER_ORDERS), np.int64)
        quantiles = self._order_statistics(ranks_of(moments.n), again, moments, beyond)
        distinct, entropy = self._runs(moments.n, again)
        return statistics_from(
            moments, quantiles=quantiles, outliers=beyond.tolist(), distinct=distinct, entropy=entropy, odd=odd
        )

    def _order_statistics(
        self, ranks: Sequence[int], again: SecondLook, moments: Moments, beyond: NDArray[np.int64]
    ) -> list[float]:
        """The finite elements of these 1-based ranks; counts the outliers on the way."""
        form = self._float
        upper = np.arange(2**_DIGIT)
        finite = np.where((upper & 0x7FFF) < form.infinity, self._upper, 0)
        first = np.empty_like(finite)
        first[_ordered(upper, _DIGIT)] = finite
        prefixes, remaining = [0] * len(ranks), list(ranks)
        counts = {0: first}
        distances = np.array([int(order) * moments.std for order in OUTLIER_ORDERS])
        for shift in range(form.width - _DIGIT, -1, -_DIGIT):
            if shift < form.width - _DIGIT:
                counts = self._digits(sorted(set(prefixes)), shift, again, moments, distances, beyond)
                distances = distances[:0]
            for place, prefix in enumerate(prefixes):
                cumulative = np.cumsum(counts[prefix])
                digit = int(np.searchsorted(cumulative, remaining[place], side="left"))
                remaining[place] -= int(cumulative[digit - 1]) if digit else 0
                prefixes[place] = prefix << _DIGIT | digit
        sign = 1 << (form.width - 1)
        patterns = [key ^ sign if key & sign else key ^ (2 * sign - 1) for key in prefixes]
        return [float(value) for value in np.array(patterns, dtype=form.bits).view(form.value)]

    def _digits(
        self,
        prefixes: list[int],
        shift: int,
        again: SecondLook,
        moments: Moments,
        distances: NDArray[np.float64],
        beyond: NDArray[np.int64],
    ) -> dict[int, NDArray[np.int64]]:
        """For each prefix, how often each next digit follows it."""
        form = self._float
        gate = np.zeros(2**_DIGIT, np.uint8)
        gate[[prefix >> (form.width - 2 * _DIGIT - shift) for prefix in prefixes]] = 1
        counts = np.zeros((len(prefixes), 2**_DIGIT), np.int64)
        wanted = np.array(prefixes, np.uint64)
        for patterns in again():
            bits = self._bits(patterns)
            count_digits(
                bits,
                bits.view(form.value),
                form.width,
                shift,
                gate,
                wanted,
                counts,
                moments.mean,
                self._unit,
                distances,
                beyond,
            )
        return dict(zip(prefixes, counts, strict=True))

    def _runs(self, n: int, again: SecondLook) -> tuple[int | None, float | None]:
        """Distinct values and entropy; None where sorting would take too much memory."""
        if n > _LARGEST_SORTED:
            return None, None
        with _SORTING:
            gathered, size = np.empty(n, self._float.bits), 0
            for patterns in again():
                bits = self._bits(patterns)
                values = bits.view(self._float.value)
                kept = np.where(values == 0, self._float.bits(0), bits)[np.isfinite(values)]
                gathered[size : size + len(kept)] = kept
                size += len(kept)
            gathered.sort()
            out = np.zeros(2)
            runs_of(gathered, out)
        return int(out[0]), float(out[1])

    def _bits(self, patterns: Patterns) -> NDArray[Any]:
        if self.matrix.dtype.integer:
            return self.matrix.dtype.decode_float64(patterns).view(np.uint64)
        return patterns


def _ordered(patterns: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Unsigned integers in the order of the values: negative ones reversed, below the positive ones."""
    sign = 1 << (width - 1)
    return np.where(patterns & sign, patterns ^ (2 * sign - 1), patterns | sign)
