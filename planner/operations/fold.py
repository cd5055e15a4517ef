"""Several operations on one tensor, folded in the working precision and rounded once.

Rounding after each operation would make the result depend on how a change is cut into steps. So the stored patterns
are decoded once, every operation is applied in float32 (float64 for F64), and the result is encoded once.

Steps that look at each element alone become a table of new patterns for a dtype of 16 bits or fewer: many operations
then cost one look-up an element. Everything else goes through the tensor in blocks of whole rows, cut at the same rows
however the tensor was read, because a matrix product may round differently when it is given other rows.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from planner.dtypes import FloatDtype
from planner.dtypes.floats import Patterns
from planner.operations.base import Block, Operation, Place, Values
from planner.operations.selection import EVERYTHING, Rows, Selection

__all__ = ["Blocks", "Folded", "Step", "fold", "pointwise"]

Blocks = Callable[[], Iterator[Patterns]]
"""Gives a tensor's stored patterns in order, in pieces of any length and shape, as often as it is called."""

_BLOCK = 2**20
"""Elements of a block; a row longer than that is a block by itself."""
_LOOK_UP = 2**16
"""Elements looked up at a time: numpy turns indices into 64-bit ones, which should not leave the cache."""


@dataclass(frozen=True)
class Step:
    """One operation on some elements of a tensor."""

    operation: Operation
    """With numbers in the place of ramps (`Operation.at_depth`)."""
    selection: Selection = EVERYTHING
    """The elements that are changed; the others keep their bits."""
    arrays: Mapping[str, Values] = field(default_factory=dict)
    """What the parameters that name a file stand for, by the parameter's name; float64."""
    other: Callable[[int, int], Values] | None = None
    """Rows [first, first + count) of the same tensor of another checkpoint, in the working precision."""
    modification: str = ""
    """Id of the modification that it is part of."""

    @property
    def pointwise(self) -> bool:
        """Whether each new element depends on the old element alone."""
        return self.operation.pointwise and not self.operation.observes and self.selection.pointwise


def fold(steps: Sequence[Step], dtype: FloatDtype, shape: tuple[int, ...], *, tensor: str = "") -> Folded:
    """What `steps`, in order, make of a tensor of this dtype, shape and name.

    Raises ValueError for a ramp that is still one: which number it is depends on the layer.
    """
    if ramps := [type(step.operation).__name__ for step in steps if step.operation.has_ramp]:
        raise ValueError(f"{', '.join(ramps)}: `at_depth` has to make numbers of the ramps first")
    return Folded(tuple(steps), dtype, shape, tensor)


def pointwise(operations: Sequence[Operation], dtype: FloatDtype) -> Callable[[Patterns], Patterns]:
    """The function from stored patterns to new patterns, of the same shape, that applies `operations` to all elements.

    Raises ValueError where one of them needs more than the element: its place, its neighbours, a part of the model.
    """
    if not all(operation.pointwise and not operation.STRUCTURED for operation in operations):
        raise ValueError("only pointwise operations, on whole tensors, are a function of the pattern")
    folded = fold([Step(operation) for operation in operations], dtype, ())
    table = folded.table
    return folded.elements if table is None else lambda patterns: _looked_up(table, patterns)


class Folded:
    """Steps on one tensor, as a function of its stored patterns."""

    def __init__(self, steps: tuple[Step, ...], dtype: FloatDtype, shape: tuple[int, ...], tensor: str) -> None:
        """`fold` makes one."""
        self.steps = steps
        self.dtype = dtype
        self.tensor = tensor
        self.shape = (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)
        """The tensor as [rows, columns]."""
        self.pointwise = all(step.pointwise for step in steps)
        """Whether each new element depends on the old element alone."""
        self.passes = 1 + sum(step.operation.observes for step in steps)
        """How often `rewrite` goes through the tensor."""

    @cached_property
    def table(self) -> Patterns | None:
        """New patterns by old pattern, shape [2^bits]; None where the patterns alone do not decide, or are too many."""
        if not (self.pointwise and self.dtype.tabulable):
            return None
        return _table(self)

    def rewrite(self, blocks: Blocks) -> Iterator[Patterns]:
        """The new patterns, in order, flat, in pieces. A NaN that stays one and what no step selects keep their bits.

        `blocks` is called `passes` times. Memory: a few blocks of 2^20 elements, or of the longest row. Raises
        ValueError where it gives more or fewer elements than the tensor has.
        """
        if self.pointwise:
            yield from self._element_by_element(blocks)
            return
        observed: list[Any] = []
        for number, step in enumerate(self.steps):
            seen = None
            if step.operation.observes:
                with np.errstate(over="ignore", invalid="ignore"):
                    seen = step.operation.observe(self._left_by(number, observed, blocks), self._place(step))
            observed.append(seen)
        for first, patterns in self._rows(blocks):
            if self._untouched(first, len(patterns)):
                yield patterns.reshape(-1)
                continue
            before = self.dtype.decode(patterns)
            after = self._after(self.steps, before, first, observed)
            yield self._encoded(patterns, before, after).reshape(-1)

    def elements(self, patterns: Patterns) -> Patterns:
        """New patterns of some elements, wherever they stand; same shape. Only for what is `pointwise`."""
        before = self.dtype.decode(patterns)
        return self._encoded(patterns, before, self._after(self.steps, before, 0, [None] * len(self.steps)))

    def _element_by_element(self, blocks: Blocks) -> Iterator[Patterns]:
        done = 0
        for piece in blocks():
            flat = piece.reshape(-1)
            done += flat.size
            if self.table is not None:
                yield _looked_up(self.table, flat)
                continue
            for start in range(0, flat.size, _BLOCK):
                yield self.elements(flat[start : start + _BLOCK])
        self._require_all(done)

    def _rows(self, blocks: Blocks) -> Iterator[tuple[int, Patterns]]:
        """Blocks of whole rows [rows, columns], each with its first row, cut at the same rows whatever is given."""
        rows, columns = self.shape
        size = max(1, _BLOCK // max(columns, 1)) * columns
        block, filled, done = np.empty(0, self.dtype.pattern), 0, 0
        for piece in blocks():
            flat = piece.reshape(-1)
            while flat.size:
                if not filled:
                    # A block of its own each time: what an operation or the caller keeps of one is not written over.
                    block = np.empty(min(size, rows * columns - done), self.dtype.pattern)
                    if not block.size:
                        self._require_all(done + flat.size)
                taken, flat = flat[: block.size - filled], flat[block.size - filled :]
                block[filled : filled + taken.size] = taken
                filled += taken.size
                if filled == block.size:
                    yield done // columns, block.reshape(-1, columns)
                    done, filled = done + filled, 0
        self._require_all(done + filled)

    def _require_all(self, elements: int) -> None:
        if elements != math.prod(self.shape):
            raise ValueError(f"a tensor of {math.prod(self.shape):,} elements came as {elements:,}")

    def _left_by(self, count: int, observed: Sequence[Any], blocks: Blocks) -> Iterator[Block]:
        """The tensor as the first `count` steps leave it."""
        for first, patterns in self._rows(blocks):
            yield Block(first, self._after(self.steps[:count], self.dtype.decode(patterns), first, observed))

    def _after(self, steps: Sequence[Step], before: Values, first: int, observed: Sequence[Any]) -> Values:
        """The values after `steps`; `before` itself where none of them selects anything."""
        after = before
        with np.errstate(over="ignore", invalid="ignore"):
            for step, seen in zip(steps, observed, strict=False):
                place = self._place(step, first, seen)
                mask = step.selection.mask(before, place)
                if np.any(mask):
                    changed = step.operation.apply(after, place)
                    after = changed if mask is True else np.where(mask, changed, after)
        return after

    def _untouched(self, first: int, count: int) -> bool:
        """Whether no step names any of these rows: of an embedding, a few tokens are changed and the rest is copied."""
        return all(
            isinstance(step.selection, Rows) and not step.selection.within(first, count).size for step in self.steps
        )

    def _encoded(self, patterns: Patterns, before: Values, after: Values) -> Patterns:
        if after is before:
            return patterns
        # Arithmetic may turn one NaN into another; nothing was asked of it, so its bits stay. One that is new has the
        # sign that the processor likes (minus on x86, plus on Arm): it gets one that is the same everywhere.
        nan = np.isnan(after)
        if not nan.any():
            return self.dtype.encode(after)
        new = self.dtype.encode(np.where(nan, after.dtype.type(np.nan), after))
        return np.where(np.isnan(before) & nan, patterns, new)

    def _place(self, step: Step, first: int = 0, observed: Any = None) -> Place:
        return Place(
            shape=self.shape,
            first=first,
            arrays=step.arrays,
            observed=observed,
            tensor=self.tensor,
            rounded=self._rounded,
            other=step.other,
        )

    def _rounded(self, values: Values) -> Values:
        """Values in the working precision, rounded to the stored dtype."""
        return self.dtype.decode(self.dtype.encode(values.astype(self.dtype.working, copy=False)))


_TABLES: OrderedDict[tuple[str, ...], Patterns] = OrderedDict()
_MOST_TABLES = 64


def _table(folded: Folded) -> Patterns:
    """New patterns by old pattern, read-only; kept for a while.

    A plan often does the same to many tensors, and `check` asks for each of them more than once. What is looked up is
    how the steps are written, for 0.0 and -0.0 are equal and do not do the same.
    """
    written = [f"{step.operation.model_dump_json()} {step.selection!r}" for step in folded.steps]
    key = (folded.dtype.name, *written)
    if key not in _TABLES:
        table = folded.elements(folded.dtype.all_patterns())
        table.flags.writeable = False
        _TABLES[key] = table
        if len(_TABLES) > _MOST_TABLES:
            _TABLES.popitem(last=False)
    return _TABLES[key]


def _looked_up(table: Patterns, patterns: Patterns) -> Patterns:
    """table[patterns], without the 64-bit copy of all patterns that numpy would make of them as indices."""
    flat = patterns.reshape(-1)
    found = np.empty(flat.size, table.dtype)
    for start in range(0, flat.size, _LOOK_UP):
        # Every pattern is in the table, so nothing is clipped; the other modes check or buffer what comes out.
        np.take(table, flat[start : start + _LOOK_UP], out=found[start : start + _LOOK_UP], mode="clip")
    return found.reshape(patterns.shape)
