"""Noise."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from planner.operations.base import ANYWHERE, Example, Operation, Place, Values
from planner.operations.gaussian import standard_normal
from planner.operations.numbers import NotNegative, settled

__all__ = ["Noise"]

_RUN = 2**16
"""Elements that are drawn together, whatever blocks the tensor is read in."""


class Noise(Operation):
    """Add Gaussian noise to every element. A control: an edit that helps should beat noise of the same size."""

    POINTWISE: ClassVar[bool] = False
    EXAMPLES: ClassVar[tuple[Example, ...]] = (Example({"std": 0, "seed": 7}, before=(1, -2, 0), after=(1, -2, 0)),)

    kind: Literal["noise"] = "noise"
    """The name of the operation."""
    std: NotNegative
    """Standard deviation of the noise, in the units of the weights; 0 or more; a number or a ramp."""
    seed: Annotated[int, Field(ge=0, lt=2**53)]
    """Which noise: the same seed draws the same noise for a tensor of the same name, other tensors get other noise."""

    def apply(self, values: Values, place: Place = ANYWHERE) -> Values:
        """w + std · z, with z drawn from N(0, 1) in float64 and the product rounded to the precision of w.

        z depends on the seed, the tensor's name and the element's index in the tensor (row after row), and on nothing
        else: not on blocks, threads, dtype, selection or machine. Each run of 65,536 elements has a stream of its own.
        """
        std = settled(self.std)
        if not std:
            return values  # adding +0 would make +0 of -0
        first = place.first * values.shape[-1] if values.ndim > 1 else 0
        drawn = self._standard(place.tensor, first, values.size).reshape(values.shape)
        drawn *= std
        return values + drawn.astype(values.dtype)

    def _standard(self, tensor: str, first: int, count: int) -> NDArray[np.float64]:
        """N(0, 1) for the elements `first` to `first + count` of the tensor."""
        key = int.from_bytes(sha256(f"{self.seed}\0{tensor}".encode(errors="surrogatepass")).digest()[:16], "little")
        drawn = np.empty(count)
        for run in range(first // _RUN, -(-(first + count) // _RUN)):
            start, end = max(first, run * _RUN), min(first + count, (run + 1) * _RUN)
            drawn[start - first : end - first] = standard_normal(key, run, end - run * _RUN)[start - run * _RUN :]
        return drawn
