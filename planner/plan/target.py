"""Which tensors a modification is about, and the strict way from that to their names."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Self

from pydantic import field_validator, model_validator

from planner.architecture import role_of
from planner.operations import numbers_in
from planner.plan.elements import AllElements, Elements
from planner.plan.nearest import nearest_hint
from planner.records import Record

__all__ = ["Target", "TargetUnmatched", "resolve"]

_BRACES = re.compile(r"\{([^{}]*)\}")
_GLOB = re.compile(r"[*?\[]")
_MOST_NAMES = 100_000
_LONGEST_PATTERN = 1024


class TargetUnmatched(ValueError):
    """Some part of a target matches nothing. `hint` says what there is instead."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Target(Record):
    """Tensors by name, by role, by layer, or by several of these at once: then all must hold."""

    tensors: tuple[str, ...] | None = None
    """Names; `*`, `?` and `[...]` match as in a shell, `{10-27}` and `{1,3,5}` stand for each of those numbers."""
    roles: tuple[str, ...] | None = None
    """Roles, such as q_proj or input_layernorm."""
    layers: str | None = None
    """Layers, such as `10-27` or `0,2,5-7`."""
    elements: Elements = AllElements()
    """Which elements of each tensor."""

    @field_validator("layers")
    @classmethod
    def _layers_can_be_read(cls, layers: str | None) -> str | None:
        if layers is not None:
            numbers_in(layers)
        return layers

    @field_validator("tensors")
    @classmethod
    def _braces_can_be_read(cls, tensors: tuple[str, ...] | None) -> tuple[str, ...] | None:
        count = 0
        for pattern in tensors or ():
            if len(pattern) > _LONGEST_PATTERN:
                raise ValueError(f"a pattern of {len(pattern):,} characters; at most {_LONGEST_PATTERN:,} are read")
            count += math.prod(map(len, _choices(pattern)[1]))
            if count > _MOST_NAMES:
                raise ValueError(f"the patterns stand for more than {_MOST_NAMES:,} names")
        return tensors

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.tensors and not self.roles and self.layers is None:
            raise ValueError("a target names tensors, roles or layers")
        return self


def resolve(target: Target, names: Sequence[str]) -> tuple[str, ...]:
    """The names among `names` that the target means, in their order there.

    Every part must match: each pattern, each number in braces, each role, each layer. A range that runs past the last
    layer is an error, not a shorter range. Raises `TargetUnmatched`.
    """
    found = list(names)
    if target.tensors:
        known, in_order = set(names), sorted(names)
        wanted: set[str] = set()
        for pattern in target.tensors:
            for alternative in _expanded(pattern):
                matched = {alternative} if alternative in known else _matching(alternative, in_order)
                if not matched:
                    raise TargetUnmatched(f"no tensor matches {alternative!r}", hint=nearest_hint(alternative, names))
                wanted |= matched
        found = [name for name in found if name in wanted]
    if target.roles:
        found = _filtered_by_role(found, target.roles)
    if target.layers is not None:
        found = _filtered_by_layer(found, target.layers)
    return tuple(found)


def _matching(pattern: str, in_order: Sequence[str]) -> set[str]:
    """The names that a pattern matches, among those that begin as it does: thousands of patterns are not unusual."""
    start = _GLOB.split(pattern, maxsplit=1)[0]
    first = bisect_left(in_order, start)
    end = bisect_right(in_order, start, lo=first, key=lambda name: name[: len(start)])
    return {name for name in in_order[first:end] if fnmatchcase(name, pattern)}


def _filtered_by_role(names: list[str], roles: tuple[str, ...]) -> list[str]:
    there = {role_of(name).role for name in names}
    for role in roles:
        if role not in there:
            raise TargetUnmatched(
                f"no tensor that the target names so far has the role {role!r}", hint=nearest_hint(role, sorted(there))
            )
    return [name for name in names if role_of(name).role in roles]


def _filtered_by_layer(names: list[str], layers: str) -> list[str]:
    there = {layer for name in names if (layer := role_of(name).layer) is not None}
    wanted = set(numbers_in(layers))
    if missing := sorted(wanted - there):
        span = f"layers here: {min(there)}-{max(there)}" if there else "no tensor here is in a layer"
        raise TargetUnmatched("no layer " + ", ".join(map(str, missing[:8])), hint=span)
    return [name for name in names if role_of(name).layer in wanted]


def _choices(pattern: str) -> tuple[list[str], list[list[int]]]:
    """The texts around the braces of a pattern, and the numbers in each of the braces. Raises ValueError."""
    parts = _BRACES.split(pattern)
    choices: list[list[int]] = []
    for numbers in parts[1::2]:
        choices.append(numbers_in(numbers))
        if math.prod(map(len, choices)) > _MOST_NAMES:
            raise ValueError(f"{pattern!r} stands for more than {_MOST_NAMES:,} names")
    return parts[::2], choices


def _expanded(pattern: str) -> Iterator[str]:
    """Every name or glob that a pattern with braces stands for. Raises ValueError."""
    texts, choices = _choices(pattern)
    for numbers in product(*choices):
        yield texts[0] + "".join(f"{number}{text}" for number, text in zip(numbers, texts[1:], strict=True))
