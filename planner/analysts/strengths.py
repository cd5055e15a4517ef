"""Which parameters of an operation say how strongly it acts, and which way.

To compare, merge or redraw modifications one has to know which of their numbers is the strength, and what value of it
would change nothing. An operation that is not listed has none, and is only ever compared as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.operations import AnyOperation, Operation, Ramp
from planner.operations.numbers import ArrayFile

__all__ = ["STRENGTHS", "Strength", "direction_of", "numbers_of", "with_numbers", "worded"]


@dataclass(frozen=True)
class Strength:
    """The strength of one kind of operation."""

    fields: tuple[str, ...]
    """The parameters that hold it."""
    neutral: float | None = None
    """The value that changes nothing, where it is the same for every tensor."""
    signed: bool = False
    """Whether values on both sides of the neutral one make sense: there are two directions."""


_FACTOR = Strength(("factor",), neutral=1.0, signed=True)

STRENGTHS: dict[str, Strength] = {
    **dict.fromkeys(("scale", "head_scale", "neuron_scale", "channel_scale", "spectral_scale"), _FACTOR),
    "shift": Strength(("offset",), neutral=0.0, signed=True),
    "project_out": Strength(("strength",), neutral=0.0, signed=True),
    "rotate": Strength(("angle",), neutral=0.0, signed=True),
    "rank_one": Strength(("strength",), neutral=0.0, signed=True),
    "low_rank_add": Strength(("weight",), neutral=0.0, signed=True),
    "bake_steering": Strength(("strength",), neutral=0.0, signed=True),
    "blend": Strength(("weight",), neutral=0.0, signed=True),
    "noise": Strength(("std",), neutral=0.0),
    "soft_threshold": Strength(("threshold",), neutral=0.0),
    "reduce": Strength(("alpha",), neutral=0.0),
    "boost": Strength(("alpha",), neutral=0.0),
    "clamp": Strength(("minimum", "maximum")),
    "normalize": Strength(("norm",)),
    "spectral_clamp": Strength(("maximum",)),
    "rank_reduce": Strength(("rank",)),
}
"""By the kind of the operation."""

_NONE = Strength(())


def numbers_of(operation: Operation) -> dict[str, tuple[float, ...]]:
    """The strength as numbers, by parameter: one for a number, several for a ramp; nothing for an array in a file."""
    found: dict[str, tuple[float, ...]] = {}
    for field in _strength(operation).fields:
        value = getattr(operation, field)
        if isinstance(value, Ramp):
            found[field] = value.ramp
        elif value is not None and not isinstance(value, ArrayFile):
            found[field] = (value,)
    return found


def with_numbers(operation: AnyOperation, numbers: dict[str, tuple[float, ...]]) -> AnyOperation:
    """The operation with other numbers in the parameters that `numbers_of` gives.

    Raises ValueError where the operation does not take them; the rank of `rank_reduce` is rounded first.
    """
    changed: dict[str, object] = {}
    for field, values in numbers.items():
        if isinstance(getattr(operation, field), Ramp):
            changed[field] = Ramp(ramp=values)
        else:
            changed[field] = max(1, round(values[0])) if isinstance(getattr(operation, field), int) else values[0]
    own = {field: getattr(operation, field) for field in type(operation).model_fields}
    return type(operation)(**own | changed)


def direction_of(operation: Operation) -> tuple[int, ...]:
    """Which way it acts: (1,) for more, (-1,) for less, () where there are no two ways or where it is not known.

    A ramp that goes both ways has the sign of each of its numbers.
    """
    kind, strength = _kind(operation), _strength(operation)
    if kind in ("reduce", "boost"):
        return (1,) if kind == "boost" else (-1,)
    if not strength.signed or strength.neutral is None:
        return ()
    neutral = strength.neutral
    signs = tuple(
        (value > neutral) - (value < neutral) for values in numbers_of(operation).values() for value in values
    )
    ways = set(signs) - {0}
    return signs if len(ways) > 1 else tuple(ways)


def worded(operation: Operation) -> str:
    """The operation in a few words: `scale 1.05`, `clamp minimum -0.5 maximum 0.5`."""
    numbers = numbers_of(operation)
    parts = [
        (f"{field} " if len(_strength(operation).fields) > 1 else "") + " to ".join(f"{value:.4g}" for value in values)
        for field, values in numbers.items()
    ]
    given = any(isinstance(getattr(operation, field), ArrayFile) for field in _strength(operation).fields)
    return " ".join([_kind(operation), *parts, *(["by factors in a file"] if given else [])])


def _kind(operation: Operation) -> str:
    return str(type(operation).model_fields["kind"].default)


def _strength(operation: Operation) -> Strength:
    return STRENGTHS.get(_kind(operation), _NONE)
