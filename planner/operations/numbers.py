"""Parameters of operations that are more than one number: ramps over layers, arrays in files."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from planner.records import Record

__all__ = ["FORMS", "ArrayFile", "NotNegative", "Number", "Ramp", "form_of", "settled"]

FORMS = ("<number>", "<ramp>", "<array>")
"""Tags of the forms that a parameter can be written in. pydantic puts them into the paths of its complaints; no field
has such a name, so that they can be taken out again."""


class Ramp(Record):
    """A number that changes linearly with depth, over the layers that the target names."""

    ramp: tuple[float, ...] = Field(min_length=2, max_length=64)
    """Values at evenly spaced depths, the first at the first layer of the target and the last at its last layer."""

    def at(self, depth: float) -> float:
        """The value at `depth` in [0, 1], interpolated between its two neighbours, as mergekit's gradients are."""
        scaled = depth * (len(self.ramp) - 1)
        left = min(int(scaled), len(self.ramp) - 2)
        part = scaled - left
        return (1 - part) * self.ramp[left] + part * self.ramp[left + 1]


class ArrayFile(Record):
    """An array in a safetensors file that lies beside the plan."""

    file: Annotated[str, Field(min_length=1, max_length=1024)]
    """Path of the file, relative to the plan's folder."""
    array: Annotated[str, Field(min_length=1, max_length=512)]
    """Name of the array in it; `{tensor}` stands for the name of the changed tensor, `{layer}` for its layer."""
    digest: str | None = Field(default=None, pattern=r"^blake3:[0-9a-f]{64}$")
    """Digest of the file; where given, a file with other bytes is refused."""


def form_of(value: Any) -> str:
    """Which of `FORMS` a parameter is written in.

    It is the discriminator of such unions: what is wrong with a ramp is then said once, and not as three complaints
    that it is neither a number nor a sound ramp nor an array.
    """
    if isinstance(value, Ramp) or (isinstance(value, dict) and "ramp" in value):
        return "<ramp>"
    return "<array>" if isinstance(value, (dict, ArrayFile)) else "<number>"


def _number_or_ramp(value: Any) -> str:
    return "<number>" if form_of(value) == "<number>" else "<ramp>"


Number = Annotated[
    Annotated[float, Tag("<number>")] | Annotated[Ramp, Tag("<ramp>")],
    Discriminator(_number_or_ramp),
]
"""One number, or one that changes with depth."""


def settled(number: Number) -> float:
    """The number. Raises ValueError for a ramp: which number that is depends on the layer (`Operation.at_depth`)."""
    if isinstance(number, Ramp):
        raise ValueError("a ramp is no number until the depth of the layer is known")
    return number


def _not_negative(number: Number) -> Number:
    if min(number.ramp if isinstance(number, Ramp) else (number,)) < 0:
        raise ValueError("a negative number makes no sense here")
    return number


NotNegative = Annotated[Number, AfterValidator(_not_negative)]
"""A `Number` that is nowhere below 0."""
