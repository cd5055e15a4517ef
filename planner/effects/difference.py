"""Two checkpoints compared: which tensors differ, by how much, and which operation explains it exactly.

An explanation is never a guess: an operation is named only if applying it to the one tensor gives the other one bit for
bit. The candidates come from sums over both tensors (the least-squares factor, the mean offset, the new extremes).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal

import numpy as np
from pydantic import Field

from planner.checkpoint import Checkpoint
from planner.dtypes import FloatDtype, float_dtype
from planner.dtypes.floats import Patterns
from planner.operations import AnyOperation, Clamp, Operation, Scale, Shift, Zero, pointwise
from planner.records import Record

__all__ = ["Difference", "TensorDifference", "compare"]

Progress = Callable[[int], None]

_LONGEST = 200


class TensorDifference(Record):
    """One tensor that is not the same in both checkpoints."""

    name: str
    """The tensor."""
    dtype: str
    """Its dtype in the first checkpoint."""
    elements: int
    """How many numbers it holds there."""
    changed_elements: int | None
    """How many are stored with other bits; null where dtype or shape differ."""
    relative_change: float | None
    """‖B - A‖F / ‖A‖F; null where dtype or shape differ, or the values are not understood."""
    largest_change: float | None
    """Largest |b - a| among the elements that are finite in both."""
    explanation: AnyOperation | None
    """The operation that turns A into B bit for bit, if one does."""
    note: str = ""
    """What else differs: dtype or shape."""


class Difference(Record):
    """What differs between two checkpoints."""

    schema_: Literal["planner/diff@1"] = Field(default="planner/diff@1", alias="schema")
    """Kind and version of this document."""
    a: str
    """The first checkpoint."""
    b: str
    """The second checkpoint."""
    identical: bool
    """Whether both hold the same tensors with the same bytes, and the same configuration."""
    compared: int
    """How many tensors are in both."""
    tensors: tuple[TensorDifference, ...]
    """The tensors that differ."""
    only_in_a: tuple[str, ...]
    """Tensors that the second one lacks."""
    only_in_b: tuple[str, ...]
    """Tensors that the first one lacks."""
    config: tuple[str, ...] = ()
    """Keys of config.json that differ, each with both values; what a model does depends on them as well."""


def compare(a: Checkpoint, b: Checkpoint, *, progress: Progress | None = None) -> Difference:
    """Compare every tensor of `a` and `b`. `progress` is told the bytes of `a` that were read."""
    both = [name for name in a.tensors if name in b.tensors]
    found = []
    for name in both:
        if difference := _tensor_difference(a, b, name):
            found.append(difference)
        if progress:
            progress(a.tensors[name].nbytes)
    only_in_a = tuple(name for name in a.tensors if name not in b.tensors)
    only_in_b = tuple(name for name in b.tensors if name not in a.tensors)
    config = _of_config(a.config, b.config)
    return Difference(
        a=str(a.path),
        b=str(b.path),
        identical=not found and not only_in_a and not only_in_b and not config,
        compared=len(both),
        tensors=tuple(found),
        only_in_a=only_in_a,
        only_in_b=only_in_b,
        config=config,
    )


def _of_config(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    keys = [*a, *(key for key in b if key not in a)]
    return tuple(f"{_cut(key)}: {_in(a, key)} -> {_in(b, key)}" for key in keys if _in(a, key) != _in(b, key))


def _in(config: Mapping[str, Any], key: str) -> str:
    return _cut(json.dumps(config[key], sort_keys=True)) if key in config else "absent"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _tensor_difference(a: Checkpoint, b: Checkpoint, name: str) -> TensorDifference | None:
    first, second = a.tensors[name], b.tensors[name]
    same_kind = (first.dtype, first.shape) == (second.dtype, second.shape)
    if same_kind and all(x == y for x, y in zip(a.chunks(first), b.chunks(second), strict=True)):
        return None
    dtype = float_dtype(first.dtype)
    if not same_kind or dtype is None:
        note = "" if same_kind else f"{first.dtype} {list(first.shape)} became {second.dtype} {list(second.shape)}"
        return TensorDifference(
            name=name,
            dtype=first.dtype,
            elements=first.elements,
            changed_elements=None,
            relative_change=None,
            largest_change=None,
            explanation=None,
            note=note or f"values of {first.dtype} are not compared by this version",
        )

    def pairs() -> Iterator[tuple[Patterns, Patterns]]:
        for x, y in zip(a.chunks(first), b.chunks(second), strict=True):
            yield dtype.patterns(x), dtype.patterns(y)

    sums = _Sums(dtype)
    for old, new in pairs():
        sums.add(old, new)
    return TensorDifference(
        name=name,
        dtype=first.dtype,
        elements=first.elements,
        changed_elements=sums.changed,
        relative_change=sums.relative_change(),
        largest_change=sums.largest if math.isfinite(sums.largest) else None,
        explanation=_explained(sums.candidates(), pairs, dtype),
    )


class _Sums:
    """What two tensors have to do with each other, in a few sums."""

    def __init__(self, dtype: FloatDtype) -> None:
        self.dtype = dtype
        self.changed = self.count = 0
        self.square = self.product = self.distance = self.offset = self.largest = 0.0
        self.low, self.high = math.inf, -math.inf
        self.lowered = self.raised = False

    def add(self, old: Patterns, new: Patterns) -> None:
        self.changed += int(np.count_nonzero(old != new))
        x, y = self.dtype.decode_float64(old), self.dtype.decode_float64(new)
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        if not x.size:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            self.count += x.size
            self.square += float(x @ x)
            self.product += float(x @ y)
            self.distance += float((y - x) @ (y - x))
            self.offset += float((y - x).sum())
            self.largest = max(self.largest, float(np.abs(y - x).max()))
        self.low, self.high = min(self.low, float(y.min())), max(self.high, float(y.max()))
        self.lowered = self.lowered or bool((y < x).any())
        self.raised = self.raised or bool((y > x).any())

    def relative_change(self) -> float | None:
        ratio = self.distance / self.square if self.square > 0 else math.inf
        return math.sqrt(ratio) if math.isfinite(ratio) else None

    def candidates(self) -> Iterator[Operation]:
        """Operations that could explain the change, simplest parameters first."""
        yield Zero()
        if not self.count:
            return
        if self.lowered or self.raised:
            yield Clamp(
                minimum=self.low if self.raised else None,
                maximum=self.high if self.lowered else None,
            )
        for digits in range(1, 9):
            if self.square > 0 and math.isfinite(factor := self.product / self.square):
                yield from (Scale(factor=value) for value in _rounded(factor, digits))
            if math.isfinite(self.offset):
                yield from (Shift(offset=value) for value in _rounded(self.offset / self.count, digits))


def _rounded(value: float, digits: int) -> tuple[float, ...]:
    """The value in so many digits and its two neighbours: rounding to few bits leans to one side for some factors."""
    step = Decimal(1).scaleb(math.floor(math.log10(abs(value))) - digits + 1) if value else Decimal(0)
    nearest = Decimal(f"{value:.{digits}g}")
    return tuple(dict.fromkeys(float(nearest + side * step) for side in (0, 1, -1)))


def _explained(
    candidates: Iterator[Operation], pairs: Callable[[], Iterator[tuple[Patterns, Patterns]]], dtype: FloatDtype
) -> AnyOperation | None:
    for candidate in candidates:
        transform = pointwise([candidate], dtype)
        # Most candidates fail in the first chunk, so trying them one after the other reads little.
        if all(np.array_equal(transform(old), new) for old, new in pairs()):
            assert isinstance(candidate, (Scale, Shift, Clamp, Zero))
            return candidate
    return None
