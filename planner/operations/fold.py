"""Several operations on one tensor, folded in the working precision and rounded once.

Rounding after each operation would make the result depend on how a change is cut into steps. So the stored patterns
are decoded once, every operation is applied in float32 (float64 for F64), and the result is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from planner.dtypes import FloatDtype
from planner.dtypes.floats import Patterns
from planner.operations.base import Operation

__all__ = ["fold"]


def fold(operations: Sequence[Operation], dtype: FloatDtype) -> Callable[[Patterns], Patterns]:
    """The function from stored patterns to new patterns that applies `operations` in order.

    For a dtype of 16 bits or fewer it is a look-up in a table computed once, at memory speed however many operations
    there are. A NaN that stays a NaN keeps its very bits.
    """
    if not all(operation.POINTWISE for operation in operations):
        raise ValueError("only pointwise operations fold")
    if not dtype.tabulable:
        return lambda patterns: _folded(patterns, operations, dtype)
    table = _folded(dtype.all_patterns(), operations, dtype)
    return lambda patterns: table[patterns]


def _folded(patterns: Patterns, operations: Sequence[Operation], dtype: FloatDtype) -> Patterns:
    before = dtype.decode(patterns)
    after = before
    with np.errstate(over="ignore", invalid="ignore"):
        for operation in operations:
            after = operation.apply(after)
    # Arithmetic may turn one NaN into another; nothing was asked of it, so its bits stay.
    still_nan = np.isnan(before) & np.isnan(after)
    return np.where(still_nan, patterns, dtype.encode(after))
