"""What is known of a changed tensor without its values: W' = diag(rows) · W · diag(columns) + added.

That much is enough to follow a change through the model: a factor, a factor a row or column, a constant added
everywhere, or (an unknown factor) anything at all. Everything is in the orientation in which the tensor is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.effects.factors import UNKNOWN, Factors, is_unknown, times, uniform
from planner.operations import (
    BakeSteering,
    Blend,
    Boost,
    ChannelScale,
    HeadScale,
    LowRankAdd,
    NeuronScale,
    Noise,
    Normalize,
    Operation,
    ProjectOut,
    RankOne,
    RankReduce,
    Reduce,
    Rotate,
    Scale,
    Shift,
    SoftThreshold,
    SpectralScale,
    Step,
    Zero,
)
from planner.operations.selection import Columns, Everything, Rows

__all__ = ["Added", "Change", "change_of"]

Added = Literal["nothing", "constant", "same_rows", "same_columns"]
"""constant: one number to every element. same_rows: the same vector to every row. same_columns: the same vector to
every column."""

_SOME_FACTOR = 1.0 + 1.0 / np.pi
"""In the place of a positive factor that only the values tell: what holds of it by chance holds of no other plan."""


@dataclass(frozen=True, eq=False)
class Change:
    """What a stored matrix [rows, columns] becomes; a vector is one row."""

    rows: Factors = 1.0
    """A factor a row; NaN where the row's new elements are anything."""
    columns: Factors = 1.0
    """A factor a column, likewise."""
    added: Added = "nothing"
    measured: bool = False
    """Whether a factor is positive and otherwise not known, because it follows from the values; some number stands
    for it."""

    @property
    def arbitrary(self) -> bool:
        """Whether some element may be anything."""
        return is_unknown(self.rows) or is_unknown(self.columns)

    @property
    def identity(self) -> bool:
        """Whether every value stays what it was."""
        rows, columns = self.rows, self.columns
        return (
            self.added == "nothing" and isinstance(rows, float) and isinstance(columns, float) and rows == columns == 1
        )

    @property
    def zeroes(self) -> bool:
        """Whether some row or column becomes zero."""
        return any(f == 0 if isinstance(f, float) else bool((f == 0).any()) for f in (self.rows, self.columns))

    def turned(self) -> Change:
        """The same of the transposed matrix."""
        turned: dict[Added, Added] = {"same_rows": "same_columns", "same_columns": "same_rows"}
        return Change(self.columns, self.rows, turned.get(self.added, self.added), self.measured)

    def along(self, width: int) -> Factors:
        """For the weight or bias of `width` channels: the factor of each channel, unknown where something is added.

        It is stored as a vector of `width`, as one that each group of channels shares, or as one row for each group.
        """
        if self.added != "nothing":
            return UNKNOWN
        rows, columns = uniform(self.rows), uniform(self.columns)
        if not isinstance(rows, float):
            rows = np.repeat(rows, width // rows.size)
        if not isinstance(columns, float):
            columns = np.tile(columns, width // columns.size)
        return uniform(times(rows, columns))

    def then(self, later: Change) -> Change:
        """This change and a later one of the same tensor."""
        if later.arbitrary and self.zeroes:
            return _ANYTHING  # what was zero may be anything again
        rows, columns = uniform(times(self.rows, later.rows)), uniform(times(self.columns, later.columns))
        measured = self.measured or later.measured
        if self.added == "nothing":
            return Change(rows, columns, later.added, measured)
        # What was added is multiplied as well: it stays the same for all rows only if all rows are multiplied alike.
        kept: Added = self.added
        if not isinstance(uniform(later.rows), float):
            kept = "same_columns" if kept in ("constant", "same_columns") else "nothing"
        if not isinstance(uniform(later.columns), float):
            kept = "same_rows" if kept in ("constant", "same_rows") else "nothing"
        both = {kept, later.added} - {"nothing", "constant"}
        if kept == "nothing" or len(both) > 1:
            return _ANYTHING
        return Change(rows, columns, both.pop() if both else "constant", measured)


_ANYTHING = Change(rows=UNKNOWN)


def change_of(steps: Sequence[Step], shape: tuple[int, int]) -> Change:
    """What is known of a tensor of that shape [rows, columns] after `steps`, in order."""
    change = Change()
    for step in steps:
        change = change.then(_of_step(step, shape))
    return change


def _of_step(step: Step, shape: tuple[int, int]) -> Change:
    operation, selection = step.operation, step.selection
    if _idle(operation, shape):
        return Change()
    if isinstance(operation, Scale) and not isinstance(operation.factor, float | int):
        return _by_vector(operation, step) if isinstance(selection, Everything) else _ANYTHING
    if isinstance(operation, Normalize):
        whole = operation.per == "whole" or shape[0] == 1
        return Change(rows=_SOME_FACTOR, measured=True) if whole and isinstance(selection, Everything) else _ANYTHING
    added = _addend(operation, step)
    if added is not None:
        return _adding(added, selection, shape)
    factor = _factor(operation, shape)
    here = UNKNOWN if factor is None else factor
    if isinstance(selection, Everything):
        return Change(rows=here)
    if isinstance(selection, Rows):
        return Change(rows=_placed(here, selection.indices, shape[0]))
    if isinstance(selection, Columns):
        return Change(columns=_placed(here, selection.indices, shape[1]))
    return _ANYTHING


def _idle(operation: Operation, shape: tuple[int, int]) -> bool:
    """Whether the operation leaves every value what it is; it may still turn -0 into +0, which is another pattern."""
    match operation:
        case Shift():
            return operation.offset == 0
        case Noise():
            return operation.std == 0
        case SoftThreshold():
            return operation.threshold == 0
        case ProjectOut() | RankOne() | BakeSteering():
            return operation.strength == 0
        case LowRankAdd() | Blend():
            return operation.weight == 0
        case Rotate():
            return operation.angle == 0
        case RankReduce():
            return operation.rank >= min(shape)
    return False


def _placed(factor: float, indices: NDArray[np.int64], count: int) -> Factors:
    factors = np.ones(count)
    factors[indices] = factor
    return uniform(factors)


def _factor(operation: Operation, shape: tuple[int, int]) -> float | None:
    """The number that an operation multiplies by, where it does nothing else."""
    if isinstance(operation, Scale | HeadScale | NeuronScale | ChannelScale):
        return float(operation.factor) if isinstance(operation.factor, float | int) else None
    if isinstance(operation, Reduce) and isinstance(operation.alpha, float | int):
        return 1.0 - operation.alpha
    if isinstance(operation, Boost) and isinstance(operation.alpha, float | int):
        return 1.0 + operation.alpha
    if isinstance(operation, SpectralScale) and isinstance(operation.factor, float | int):
        last = operation.last
        return float(operation.factor) if operation.first == 1 and (last is None or last >= min(shape)) else None
    return 0.0 if isinstance(operation, Zero) else None


def _adding(added: Added, selection: object, shape: tuple[int, int]) -> Change:
    if isinstance(selection, Rows):
        added = _joined(added, "same_columns") if len(selection.indices) < shape[0] else added
    elif isinstance(selection, Columns):
        added = _joined(added, "same_rows") if len(selection.indices) < shape[1] else added
    elif not isinstance(selection, Everything):
        return _ANYTHING
    if (added == "same_columns" and shape[0] == 1) or (added == "same_rows" and shape[1] == 1):
        added = "constant"
    return _ANYTHING if added == "nothing" else Change(added=added)


def _joined(added: Added, other: Added) -> Added:
    return other if added in ("constant", other) else "nothing"


def _addend(operation: Operation, step: Step) -> Added | None:
    """How what an operation adds is built, where it only adds, and in a way that is told apart."""
    arrays = step.arrays
    if isinstance(operation, Shift):
        return "constant"
    if isinstance(operation, RankOne):
        return _product_of(arrays["u"][:, None], arrays["v"][None, :])
    if isinstance(operation, LowRankAdd):
        return _product_of(arrays["b"], arrays["a"])
    if isinstance(operation, BakeSteering):
        vector = arrays["vector"].reshape(1, -1)
        if "input" not in arrays:
            return "constant" if np.ptp(vector) == 0 else None
        input_ = arrays["input"].reshape(1, -1)
        return _product_of(vector.T, input_) if operation.axis == "rows" else _product_of(input_.T, vector)
    if isinstance(operation, ProjectOut) and not operation.keep_norm:
        direction = arrays["direction"].reshape(-1, arrays["direction"].shape[-1])
        if len(direction) == 1 and np.ptp(direction) == 0:
            return "same_rows" if operation.axis == "rows" else "same_columns"
    return None


def _product_of(b: NDArray[np.floating[Any]], a: NDArray[np.floating[Any]]) -> Added | None:
    """How b · a is built: equal rows of b give equal rows, equal columns of a give equal columns."""
    rows, columns = bool(np.all(np.ptp(b, axis=0) == 0)), bool(np.all(np.ptp(a, axis=1) == 0))
    if rows:
        return "constant" if columns else "same_rows"
    return "same_columns" if columns else None


def _by_vector(operation: Scale, step: Step) -> Change:
    factors = uniform(np.asarray(step.arrays["factor"], dtype=np.float64).reshape(-1))
    axis = getattr(operation.factor, "axis", "rows")
    return Change(rows=factors) if axis == "rows" else Change(columns=factors)
