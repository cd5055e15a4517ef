"""What is known of an activation after a change of weights: x' = factor · x + offset + shift · 1, x being as before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.effects.factors import UNKNOWN, Factors, is_unknown, known_equal, uniform

__all__ = ["ANYTHING", "SAME", "Mask", "Shift", "Value", "at"]

Mask = NDArray[np.bool_] | bool

Shift = Literal["none", "steady", "token"]
"""One number added to all channels alike: the same for every token, or one that depends on the token."""


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of the channels of one node."""

    factor: Factors = 1.0
    """Of each channel; NaN where the channel may be anything."""
    offset: Mask = False
    """Channels to which something was added that is the same for every token."""
    shift: Shift = "none"

    @property
    def same(self) -> bool:
        """Whether nothing changed."""
        if isinstance(self.factor, float) and isinstance(self.offset, bool):
            return not self.offset and self.shift == "none" and bool(known_equal(self.factor, 1.0))
        return self.shift == "none" and not np.any(self.offset) and bool(np.all(known_equal(self.factor, 1.0)))

    @property
    def pure(self) -> bool:
        """Whether there is a factor and nothing else."""
        if isinstance(self.offset, bool):
            return not self.offset and self.shift == "none"
        return self.shift == "none" and not np.any(self.offset)

    @property
    def unknown(self) -> bool:
        """Whether some channel may be anything."""
        return is_unknown(self.factor)


SAME = Value()
ANYTHING = Value(factor=UNKNOWN)


def at(value: Value, indices: NDArray[np.int64]) -> Value:
    """The value of some channels."""
    factor = value.factor if isinstance(value.factor, float) else uniform(value.factor[indices])
    offset = value.offset if isinstance(value.offset, bool) else value.offset[indices]
    return Value(factor, offset, value.shift)
