"""Limits of parameters, and the errors for arrays that do not fit the tensor they are meant for."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from planner.operations.base import Place, Values
from planner.operations.numbers import Number, Ramp

__all__ = ["Positive", "array_of"]


def _positive(number: Number) -> Number:
    if min(number.ramp if isinstance(number, Ramp) else (number,)) <= 0:
        raise ValueError("must be above 0")
    return number


Positive = Annotated[Number, AfterValidator(_positive)]
"""A `Number` that is above 0 everywhere."""


def array_of(place: Place, name: str, *shape: int | None) -> Values:
    """The array that the parameter `name` stands for, of the given shape, None being any length.

    A vector is taken for a matrix of one row where two lengths are given. Raises ValueError where the array is
    missing or has another shape.
    """
    if name not in place.arrays:
        raise ValueError(f"the array {name} is missing")
    array = place.arrays[name]
    if len(shape) == 2 and array.ndim == 1:
        array = array[None, :]
    if array.ndim != len(shape) or any(
        wanted not in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"the array {name} has the shape {list(array.shape)}; [{wanted}] fits this tensor")
    return array
