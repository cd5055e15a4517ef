"""What every operation is: a pydantic record that can be applied to an array."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from planner.records import Record

__all__ = ["Example", "Operation", "Values"]

Values = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Example:
    """Parameters with values before and after: a test, a line of documentation and a line of the prompt at once."""

    parameters: dict[str, float]
    before: tuple[float, ...]
    after: tuple[float, ...]


class Operation(Record):
    """One change to the elements of a tensor.

    The class docstring is what an analyst reads in the catalogue. `apply` works in the precision it is given and
    never rounds to the stored dtype: that happens once, after every operation on the tensor has been applied.
    """

    EXAMPLES: ClassVar[tuple[Example, ...]]
    POINTWISE: ClassVar[bool] = True
    """Whether each new element depends on the old element alone."""
    LINEAR: ClassVar[bool] = False
    """Whether f(a·x + b·y) = a·f(x) + b·f(y)."""
    KEEPS_ZEROS: ClassVar[bool] = False
    """Whether a zero stays a zero."""

    @abstractmethod
    def apply(self, values: Values) -> Values:
        """New values, of the same shape and dtype. `values` itself is left as it is."""
