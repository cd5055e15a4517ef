"""What every operation is: a pydantic record that can be applied to an array.

An operation sees a tensor as a matrix [rows, columns] (a vector is one row; leading dimensions are flattened into
rows), one block of whole rows at a time, so that no tensor needs to fit in memory. What must be known of the whole
before a block can be changed (a norm, a projection) is observed in a pass of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from planner.operations.numbers import Ramp
from planner.records import Record

__all__ = ["ANYWHERE", "Block", "Example", "Operation", "Place", "Values"]

Values = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Example:
    """Parameters with values before and after: a test, a line of documentation and a line of the prompt at once."""

    parameters: dict[str, Any]
    before: tuple[Any, ...]
    """A vector, or a matrix as a tuple of rows."""
    after: tuple[Any, ...]
    arrays: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """What the parameters that name a file stand for, by the parameter's name."""


@dataclass(frozen=True)
class Place:
    """Where a block of values stands in its tensor, and what the operation knows beside the values."""

    shape: tuple[int, int]
    """The whole tensor as [rows, columns]."""
    first: int = 0
    """Index of the block's first row."""
    arrays: Mapping[str, Values] = field(default_factory=dict)
    """What the parameters that name a file stand for, by the parameter's name; float64."""
    observed: Any = None
    """What `observe` returned."""
    tensor: str = ""
    """Name of the tensor: a seed for what is random."""
    rounded: Callable[[Values], Values] | None = None
    """Rounds values to the stored dtype and back, for operations that round part way."""
    other: Callable[[int, int], Values] | None = None
    """Rows [first, first + count) of the same tensor of another checkpoint, in the working precision."""


ANYWHERE = Place(shape=(0, 0))
"""For pointwise operations, which do not look where they are."""


@dataclass(frozen=True)
class Block:
    """Some whole rows of a tensor."""

    first: int
    """Index of the first row."""
    values: Values
    """[rows, columns]."""


class Operation(Record):
    """One change to the elements of a tensor.

    The class docstring is what an analyst reads in the catalogue. `apply` works in the precision it is given and
    never rounds to the stored dtype: that happens once, after every operation on the tensor has been applied.
    """

    EXAMPLES: ClassVar[tuple[Example, ...]]
    POINTWISE: ClassVar[bool] = True
    """Whether each new element depends on the old element alone; `pointwise` says it of one operation."""
    LINEAR: ClassVar[bool] = False
    """Whether f(a·x + b·y) = a·f(x) + b·f(y)."""
    KEEPS_ZEROS: ClassVar[bool] = False
    """Whether a zero stays a zero."""
    OBSERVES: ClassVar[bool] = False
    """Whether `observe` must see the whole tensor before `apply` sees any of it."""
    STRUCTURED: ClassVar[bool] = False
    """Whether it names parts of the model (heads, neurons, channels) which first become rows or columns of tensors."""

    @property
    def pointwise(self) -> bool:
        """Whether each new element depends on the old element alone, with these parameters."""
        return self.POINTWISE

    @property
    def observes(self) -> bool:
        """Whether `observe` must see the whole tensor first, with these parameters."""
        return self.OBSERVES

    def at_depth(self, depth: float) -> Self:
        """The operation with every ramp replaced by its number at `depth`, from 0 (first layer) to 1 (last).

        Raises ValueError where the numbers make no sense together there, such as a minimum above the maximum.
        """
        ramps = {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Ramp)}
        if not ramps:
            return self
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**found | {name: ramp.at(depth) for name, ramp in ramps.items()})

    @property
    def has_ramp(self) -> bool:
        """Whether some parameter changes with the depth of the layer."""
        return any(isinstance(getattr(self, name), Ramp) for name in type(self).model_fields)

    def observe(self, blocks: Iterable[Block], place: Place) -> Any:
        """What `apply` must know of the whole tensor, from one pass over it; nothing by default."""
        return None

    @abstractmethod
    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """New values, of the same shape and dtype. `values` itself is left as it is."""
