"""The space that a search walks through: a factor for each row of some matrices and each element of some vectors.

A point of it is a vector s of natural logs of all factors, one tensor behind the other: a tensor then holds W · exp(s).
Logs make a step and its opposite cancel, and keep every factor positive. What a tensor would hold at a point is
computed as `apply` stores it: the factor in float32, one product, rounded once to the tensor's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.checkpoint import Checkpoint
from planner.dtypes import float_dtype
from planner.edits import stored_values
from planner.evidence import Layout
from planner.evidence.measured import Floats

__all__ = ["FactorSpace", "FactorVector"]

_ROUNDING = {"BF16": 2.0**-9, "F16": 2.0**-12}
"""The largest relative error of rounding to a dtype, where it is not negligible beside a policy's limits."""
_SAFETY = 0.99
"""Of a limit on a change, for what is estimated."""


@dataclass(frozen=True)
class FactorVector:
    """The factors of one tensor."""

    tensor: str
    """Its name."""
    axis: Literal["rows", "columns"]
    """What there is a factor for; a vector is one row, so its elements are columns."""
    copies: tuple[str, ...] = ()
    """Other stored tensors that a loader makes one with it: they take the same factors."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that takes the factors."""
        return (self.tensor, *self.copies)


@dataclass(frozen=True, eq=False)
class FactorSpace:
    """Some factor vectors of one checkpoint."""

    checkpoint: Checkpoint
    layout: Layout
    """Of the evidence: it says how long each vector is, and which units it stands for."""
    vectors: tuple[FactorVector, ...]

    @cached_property
    def slices(self) -> dict[str, slice]:
        """By tensor, where its factors stand in a point."""
        found, begin = {}, 0
        for vector in self.vectors:
            length = self.layout.shapes[vector.tensor][0 if vector.axis == "rows" else 1]
            found[vector.tensor] = slice(begin, begin + length)
            begin += length
        return found

    @cached_property
    def size(self) -> int:
        """Factors in all."""
        return max((part.stop for part in self.slices.values()), default=0)

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """[size]: the unit of the layout that each factor stands for."""
        parts = []
        for vector in self.vectors:
            place = self.layout.places[vector.tensor]
            where = place.rows if vector.axis == "rows" else place.columns
            parts.append(np.arange(where.start, where.stop, dtype=np.int64))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def only(self, tensors: Sequence[str]) -> FactorSpace:
        """The space of some of its vectors, in its own order."""
        return FactorSpace(self.checkpoint, self.layout, tuple(v for v in self.vectors if v.tensor in set(tensors)))

    def part(self, kept: FactorSpace) -> NDArray[np.int64]:
        """Where the factors of a smaller space stand in a point of this one."""
        parts = [np.arange(self.slices[v.tensor].start, self.slices[v.tensor].stop) for v in kept.vectors]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def factors(self, tensor: str, at: Floats) -> NDArray[np.float32]:
        """The factors of one tensor at the point `at`, as a plan stores them."""
        return np.exp(at[self.slices[tensor]]).astype(np.float32)

    def values(self, at: Floats) -> Mapping[str, NDArray[np.float32]]:
        """What every tensor would store at the point `at`, by name, each computed when it is asked for."""
        return _Values(self, at)

    def changed(self, at: Floats) -> tuple[str, ...]:
        """The tensors of which at least one stored value would change, copies left out."""
        return tuple(v.tensor for v in self.vectors if not _same(self, v, at))

    @cached_property
    def squares(self) -> Floats:
        """[size]: the squared norm of what each factor multiplies."""
        parts = []
        for vector in self.vectors:
            values = _matrix(self, vector.tensor)
            across = 1 if vector.axis == "rows" else 0
            parts.append(np.square(values, dtype=np.float64).sum(axis=across))
        return np.concatenate(parts) if parts else np.zeros(0)

    def relative_changes(self, at: Floats) -> dict[str, float]:
        """By tensor, ‖ΔW‖F / ‖W‖F at the point `at`, before rounding; 0 for a tensor of zeros."""
        moved = self.squares * np.square(np.expm1(at))
        found = {}
        for name, part in self.slices.items():
            total = float(self.squares[part].sum())
            found[name] = float(np.sqrt(moved[part].sum() / total)) if total > 0 else 0.0
        return found

    def within(self, at: Floats, *, each: float, total: float, norm: float) -> Floats:
        """The point nearest to `at` on its way from 0 where no tensor changes by more than `each`, nor all by `total`.

        `norm` is the norm of all weights of the checkpoint, to which `total` is relative. A tensor that goes too far is
        brought back by itself; if all together still do, all are.
        """
        at = at.copy()
        rounded = 0.0
        for vector in self.vectors:
            part, error = self.slices[vector.tensor], self._rounding(vector.tensor)
            squares = self.squares[part]
            own = float(np.sqrt(squares.sum()))
            # What is rounded can go beyond by as much as rounding moves it.
            at[part] *= _strength(at[part], squares, own * (_SAFETY * each - error * (1 + each)))
            rounded += len(vector.names) * (error * (1 + each) * own) ** 2
        at *= _strength(at, self._with_copies, _SAFETY * total * norm - float(np.sqrt(rounded)))
        return at

    def _rounding(self, name: str) -> float:
        return _ROUNDING.get(self.checkpoint.tensors[name].dtype, 0.0)

    @property
    def _with_copies(self) -> Floats:
        counts = [np.full(self.slices[v.tensor].stop - self.slices[v.tensor].start, len(v.names)) for v in self.vectors]
        return self.squares * np.concatenate(counts) if counts else self.squares


def _strength(at: Floats, squares: Floats, most: float) -> float:
    """The largest t in [0, 1] for which the root of Σ squares · (exp(t · at) - 1)² stays at `most`, by bisection."""

    def length(strength: float) -> float:
        return float(np.sqrt(squares @ np.square(np.expm1(strength * at))))

    if length(1.0) <= most:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) <= most else (low, middle)
    return low


class _Values(Mapping[str, NDArray[np.float32]]):
    def __init__(self, space: FactorSpace, at: Floats) -> None:
        self._space, self._at = space, at
        self._owners = {name: vector for vector in space.vectors for name in vector.names}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        patterns, tensor = _patterns(self._space, self._owners[name], name, self._at)
        dtype = float_dtype(tensor)
        assert dtype is not None, "only tensors of understood dtypes are in a space"
        with np.errstate(over="ignore"):
            values: NDArray[np.float32] = dtype.decode(patterns).astype(np.float32)
        return values.reshape(self._space.checkpoint.tensors[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)


def _matrix(space: FactorSpace, name: str) -> NDArray[np.floating]:
    place = next(v.tensor for v in space.vectors if name in v.names)
    return stored_values(space.checkpoint, name).reshape(space.layout.shapes[place])


def _patterns(
    space: FactorSpace, vector: FactorVector, name: str, at: Floats
) -> tuple[NDArray[np.unsignedinteger], str]:
    stored = space.checkpoint.tensors[name].dtype
    dtype = float_dtype(stored)
    assert dtype is not None, "only tensors of understood dtypes are in a space"
    values = _matrix(space, name)
    factors = space.factors(vector.tensor, at).astype(values.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return dtype.encode(values * (factors[:, None] if vector.axis == "rows" else factors)), stored


def _same(space: FactorSpace, vector: FactorVector, at: Floats) -> bool:
    if not at[space.slices[vector.tensor]].any():
        return True
    patterns, stored = _patterns(space, vector, vector.tensor, at)
    dtype = float_dtype(stored)
    assert dtype is not None, "only tensors of understood dtypes are in a space"
    return bool(np.array_equal(patterns, dtype.encode(_matrix(space, vector.tensor))))
