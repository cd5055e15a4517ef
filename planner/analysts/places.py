"""Places of a checkpoint drawn at random: tensors like given ones, and as many of their elements.

Random is where a change is made, not what kind of place it is: a tensor goes to one of the same role and shape where
there are several, heads stay heads, a block of rows stays a block, tokens go to other tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.analysts.base import Brief
from planner.analysts.reach import Reach, surroundings_in
from planner.architecture import head_layout
from planner.dtypes import float_dtype
from planner.operations import AnyOperation, ChannelScale, HeadScale, NeuronScale, Rows, numbers_in
from planner.plan import (
    ColumnElements,
    Elements,
    HeadElements,
    Modification,
    RowElements,
    Target,
    TokenElements,
    ValueRange,
)
from planner.profile import TensorProfile

__all__ = ["Place", "Places", "drawn_units", "ranges_text"]

_LONGEST_LIST = 1024
_MOST_IDS = 4096

Rng = np.random.Generator


@dataclass(frozen=True)
class Place:
    """Where a modification is brought."""

    tensors: tuple[str, ...]
    """The tensors, in the order of those they stand for."""
    target: Target
    """The tensors, with the elements that are meant."""
    operation: AnyOperation
    """The operation, with the heads, neurons or channels of the new place."""


class Places:
    """The tensors of one checkpoint that a control may change."""

    def __init__(self, brief: Brief) -> None:
        self._brief = brief
        self._profile = brief.profile.by_name
        self._around = surroundings_in(brief)
        model = brief.model
        copies = {model.head, model.embedding} if model.tied else set()
        # Of two stored copies of a tied tensor, changing one alone makes loaders disagree.
        split = {name for name in copies if name} if all(name in self._profile for name in copies) else set()
        self._split = split if len(split) > 1 else set()
        self._usable = [
            tensor
            for tensor in brief.profile.tensors
            if float_dtype(tensor.dtype)
            and tensor.l2_norm
            and not brief.policy.protects(tensor.name)
            and tensor.name not in self._split
            and tensor.name not in model.unread
        ]
        self._named = {(t.role, t.layer, t.expert): t for t in self._usable}

    def drawn(self, modification: Modification, reach: Reach, taken: Collection[str], rng: Rng) -> Place:
        """A place like that of the modification, which reaches `reach`; not on `taken` tensors where others do."""
        operation = modification.operation
        if isinstance(operation, HeadScale | NeuronScale | ChannelScale):
            tensors = self._other_layers(tuple(reach), rng)
            return Place(tensors, Target(tensors=tensors), self._other_units(operation, tensors[0], rng))
        elements = modification.target.elements
        if isinstance(elements, TokenElements):
            return self._other_tokens(modification, reach, rng)
        tensors = self._others(tuple(reach), taken, rng, layered=operation.has_ramp)
        first = next(iter(reach))
        moved = self._other_elements(elements, self._profile[first], self._profile[tensors[0]], rng)
        return Place(tensors, Target(tensors=tensors, elements=moved), operation)

    def _others(self, names: Sequence[str], taken: Collection[str], rng: Rng, *, layered: bool) -> tuple[str, ...]:
        kinds: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for name in names:
            kinds.setdefault((self._profile[name].role, self._profile[name].shape), []).append(name)
        found: dict[str, str] = {}
        for (role, shape), members in kinds.items():
            pool = [name for name in self._pool(role, shape, len(members), layered) if name not in found.values()]
            fresh = [name for name in pool if name not in taken]
            pool = fresh if len(fresh) >= len(members) else pool
            pool = pool if len(pool) >= len(members) else members
            chosen = rng.permutation(len(pool))[: len(members)]
            found |= dict(zip(members, (pool[place] for place in chosen), strict=True))
        return tuple(found[name] for name in names)

    def _pool(self, role: str, shape: tuple[int, ...], count: int, layered: bool) -> list[str]:
        """The nearest kind of tensors of which there are more than `count`: with fewer, no place would be random."""
        usable = [tensor for tensor in self._usable if not layered or tensor.layer is not None]
        tiers = (
            [tensor for tensor in usable if tensor.role == role and tensor.shape == shape],
            [tensor for tensor in usable if tensor.shape == shape],
            [tensor for tensor in usable if len(tensor.shape) == len(shape)],
        )
        found = next((tier for tier in tiers if len(tier) > count), tiers[-1])
        return [tensor.name for tensor in found]

    def _other_layers(self, names: Sequence[str], rng: Rng) -> tuple[str, ...]:
        """The same tensors of other layers, layer by layer; those outside the layers stay."""
        tensors = [self._profile[name] for name in names]
        layers = sorted({tensor.layer for tensor in tensors if tensor.layer is not None})
        wanted = {(tensor.role, tensor.expert, tensor.shape) for tensor in tensors if tensor.layer is not None}
        there: dict[int, set[tuple[Any, ...]]] = {}
        for tensor in self._usable:
            if tensor.layer is not None:
                there.setdefault(tensor.layer, set()).add((tensor.role, tensor.expert, tensor.shape))
        fitting = [layer for layer in sorted(there) if wanted <= there[layer]]
        if len(fitting) < len(layers):
            return tuple(names)
        chosen = rng.permutation(len(fitting))[: len(layers)]
        new = dict(zip(layers, (fitting[place] for place in chosen), strict=True))
        return tuple(
            tensor.name if tensor.layer is None else self._named[tensor.role, new[tensor.layer], tensor.expert].name
            for tensor in tensors
        )

    def _other_units(self, operation: AnyOperation, name: str, rng: Rng) -> AnyOperation:
        parameter = self._brief.model.parameters[name]
        if isinstance(operation, ChannelScale):
            decoder = self._brief.model.decoder
            assert decoder is not None, "a channel was found in it"
            return operation.model_copy(update={"channels": _other_list(operation.channels, decoder.width, rng)})
        unit = "head" if isinstance(operation, HeadScale) else "neuron"
        total = max(len(band.indices) for band in parameter.bands if band.unit == unit)
        if isinstance(operation, NeuronScale):
            return operation.model_copy(update={"neurons": _other_list(operation.neurons, total, rng)})
        assert isinstance(operation, HeadScale), "three operations are structured"
        layer = self._brief.model.in_layer(parameter.layer)
        queries = next((len(b.indices) for p in layer for b in p.bands if b.part in ("query", "output")), total)
        # Query heads that share a key and value head are named together for those parts.
        group = queries // total if operation.part in ("key", "value") else 1
        return operation.model_copy(update={"heads": _other_list(operation.heads, queries, rng, block=group)})

    def _other_tokens(self, modification: Modification, reach: Reach, rng: Rng) -> Place:
        """The same tables, other tokens."""
        names = tuple(reach)
        selection = reach[names[0]]
        assert isinstance(selection, Rows), "tokens are rows"
        rows = self._profile[names[0]].shape[0]
        ids = np.sort(rng.permutation(rows)[: len(selection.indices)])[:_MOST_IDS]
        elements = TokenElements(ids=tuple(int(token) for token in ids))
        return Place(names, Target(tensors=names, elements=elements), modification.operation)

    def _other_elements(self, elements: Elements, was: TensorProfile, now: TensorProfile, rng: Rng) -> Elements:
        if isinstance(elements, RowElements):
            before, total = (_rows(tensor) for tensor in (was, now))
            return RowElements(indices=_other_list(elements.indices, before, rng, into=total))
        if isinstance(elements, ColumnElements):
            before, total = (tensor.shape[-1] if tensor.shape else 1 for tensor in (was, now))
            return ColumnElements(indices=_other_list(elements.indices, before, rng, into=total))
        if isinstance(elements, HeadElements):
            before, total = (self._heads(tensor, elements) for tensor in (was, now))
            heads = _other_list(elements.heads, before, rng, into=total) if before and total else elements.heads
            return elements.model_copy(update={"heads": heads})
        if isinstance(elements, ValueRange) and was.rms and now.rms:
            ratio = now.rms / was.rms
            low, high = (None if b is None else b * ratio for b in (elements.minimum, elements.maximum))
            return ValueRange(minimum=low, maximum=high)
        return elements  # a quantile means as many elements of any tensor

    def _heads(self, tensor: TensorProfile, elements: HeadElements) -> int:
        known = self._brief.model.parameters.get(tensor.name)
        if known:
            counts = [(b.part, len(b.indices)) for b in known.bands if b.unit == "head"]
        else:
            layout = head_layout(tensor.role, tensor.shape, self._brief.checkpoint.config)
            counts = [(band.part, band.count) for band in layout]
        return next((count for part, count in counts if elements.part in (None, part)), 0)


def drawn_units(
    units: NDArray[np.int64], total: int, rng: Rng, *, into: int | None = None, block: int = 1
) -> list[int]:
    """As many of `into` units (of as many as there were, by default) as `units` are of `total`, sorted.

    Neighbours that are all meant or all not meant stay together in blocks, as long as the greatest common divisor of
    the places where that changes and of the number of units; `block` is the shortest one.
    """
    into = total if into is None else into
    meant = np.zeros(total, dtype=bool)
    meant[units] = True
    edges = np.flatnonzero(np.diff(meant)) + 1
    length = reduce(gcd, edges.tolist(), gcd(total, into))
    length = length if length % block == 0 else block
    blocks = into // length
    count = min(max(1, round(meant.sum() / total * into / length)), blocks)
    chosen = np.sort(rng.permutation(blocks)[:count])
    return [int(one) * length + place for one in chosen for place in range(length)]


def ranges_text(units: Sequence[int]) -> str:
    """Sorted numbers the way people write them: `0-3,7`."""
    runs: list[list[int]] = []
    for unit in units:
        if runs and unit == runs[-1][1] + 1:
            runs[-1][1] = unit
        else:
            runs.append([unit, unit])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _other_list(text: str, total: int, rng: Rng, *, into: int | None = None, block: int = 1) -> str:
    units = np.unique(np.asarray([number for number in numbers_in(text) if number < total], dtype=np.int64))
    into = total if into is None else into
    if not units.size or not into:
        return text
    found = ranges_text(drawn_units(units, total, rng, into=into, block=block))
    if len(found) <= _LONGEST_LIST:
        return found
    # Too many to write down one by one: one run of as many, from a random place on.
    count = max(block, round(units.size / total * into / block) * block)
    start = int(rng.integers((into - count) // block + 1)) * block
    return ranges_text(range(start, start + count))


def _rows(tensor: TensorProfile) -> int:
    return int(np.prod(tensor.shape[:-1], dtype=np.int64))
