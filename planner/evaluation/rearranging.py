"""Random plans of the same strengths as a given one: the same amounts of change in other places and directions.

What a plan does is only worth something if doing as much at random does not help as well. Each strength of the plan is
kept: a factor f stays f or becomes 1/f (its logarithm keeps its size), and goes to a tensor of the same role and shape;
the factors of a vector change places within it. A change that is no factor and no offset keeps its tensor and its
Frobenius norm: its rows change places and signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any, Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from planner.architecture import role_of
from planner.checkpoint import Checkpoint
from planner.dtypes import float_dtype
from planner.edits import PlanEdits, Surroundings, TensorEdit, new_values, stored_values
from planner.effects.changes import change_of
from planner.operations import Shift
from planner.operations.numbers import settled
from planner.operations.selection import Everything

__all__ = ["Method", "RandomPlan", "Rearrangement", "Unarrangeable"]

Method = Literal["factor", "factors", "offset", "change"]
_Floats = NDArray[np.floating[Any]]
_TRIES = 50
"""Draws for each random plan that is asked for, before there seem to be no more different ones."""


class Unarrangeable(ValueError):
    """There is no random plan of this plan's strengths that could be measured in memory."""


@dataclass(frozen=True, eq=False)
class _Strength:
    """What a plan does to one tensor, apart from where that is."""

    tensor: str
    method: Method
    rows: _Floats
    """Factors [1] or [rows]; for an offset or any other change, not used."""
    columns: _Floats
    """Factors [1] or [columns]; likewise."""
    offset: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether it is a factor of one, or an offset of zero."""
        return (
            self.method != "change" and self.offset == 0 and bool((self.rows == 1).all() and (self.columns == 1).all())
        )


@dataclass(frozen=True, eq=False)
class _Arranged:
    """A strength in a new place. For any other change `rows` has the signs of the rows and `order` their places."""

    strength: _Strength
    tensor: str
    rows: _Floats
    columns: _Floats
    offset: float = 0.0
    order: NDArray[np.int64] | None = None

    @property
    def signature(self) -> bytes:
        """Equal for equal changes of the same tensor."""
        arrays = (self.rows, self.columns, np.array(self.offset), np.zeros(0) if self.order is None else self.order)
        return blake3(b"|".join([self.tensor.encode(), *(array.tobytes() for array in arrays)])).digest()


class RandomPlan(Mapping[str, NDArray[np.float32]]):
    """New values of whole tensors by name, rounded as they would be stored, each computed when it is asked for."""

    def __init__(
        self, arranged: Mapping[str, _Arranged], checkpoint: Checkpoint, changes: Mapping[str, _Floats]
    ) -> None:
        self._arranged, self._checkpoint, self._changes = arranged, checkpoint, changes

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        arranged = self._arranged[name]
        dtype = float_dtype(self._checkpoint.tensors[name].dtype)
        assert dtype is not None, "only tensors whose values are understood are in a plan"
        values = stored_values(self._checkpoint, name)
        matrix = _as_matrix(values)
        working = matrix.dtype
        with np.errstate(over="ignore", invalid="ignore"):
            if arranged.order is not None:
                change = _as_matrix(self._changes[arranged.strength.tensor], split=True)[arranged.order]
                moved = (arranged.rows.astype(working)[:, None] * change).reshape(matrix.shape)
                matrix = matrix + moved
            elif arranged.strength.method == "offset":
                matrix = matrix + working.type(arranged.offset)
            else:
                matrix = matrix * arranged.rows.astype(working)[:, None] * arranged.columns.astype(working)
            rounded = dtype.decode(dtype.encode(matrix.astype(working, copy=False)))
            return rounded.astype(np.float32).reshape(values.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arranged)

    def __len__(self) -> int:
        return len(self._arranged)


class Rearrangement:
    """The strengths of one plan, and the places that they can go to."""

    methods: dict[Method, int]
    """Tensors of the plan by how their change is rearranged."""

    def __init__(
        self,
        edits: PlanEdits,
        around: Surroundings,
        *,
        changeable: frozenset[str],
        copies: Mapping[str, Sequence[str]],
    ) -> None:
        """`changeable` names the tensors that can be measured, `copies` is what `stored_copies` says of them.

        Memory: in float32, the tensors whose change is no factor and no offset. Raises `Unarrangeable`.
        """
        _require_possible(edits, changeable, copies)
        self._checkpoint = around.checkpoint
        self._copies = copies
        edited = {name: edit for name, edit in edits.tensors.items() if copies.get(name, (name,))[0] == name}
        found = [_strength_of(edit) for edit in edited.values()]
        others = {one.tensor: edits.tensors[one.tensor] for one in found if one.method == "change"}
        self._changes = _changes(others, around)
        self._strengths = [
            one for one in found if one.tensor in self._changes or not (one.method == "change" or one.idle)
        ]
        if not self._strengths:
            raise Unarrangeable("the plan changes no stored value")
        self.methods = {}
        for one in self._strengths:
            self.methods[one.method] = self.methods.get(one.method, 0) + 1
        self._pools = self._pools_of(changeable - others.keys())

    def _pools_of(self, changeable: frozenset[str]) -> dict[str, tuple[str, ...]]:
        """For each strength that can move, by its tensor: all tensors of the same role and shape."""
        kinds: dict[object, list[str]] = {}
        for name, tensor in self._checkpoint.tensors.items():
            if name in changeable and float_dtype(tensor.dtype) and self._copies.get(name, (name,))[0] == name:
                kinds.setdefault((role_of(name).role, tensor.shape), []).append(name)
        by_tensor = {name: tuple(names) for names in kinds.values() for name in names}
        return {one.tensor: by_tensor[one.tensor] for one in self._strengths if one.method != "change"}

    def draw(self, count: int, seed: int) -> list[RandomPlan]:
        """`count` random plans, each different from the others and from the plan; fewer if no more are found.

        The same seed gives the same ones, and the first of them whatever `count` is.
        """
        rng = np.random.default_rng([seed, 2])
        seen = {_signature(_as_planned(one, self._changes) for one in self._strengths)}
        plans: list[RandomPlan] = []
        for _ in range(_TRIES * count):
            if len(plans) == count:
                break
            arranged = list(self._arranged(rng))
            signature = _signature(arranged)
            if signature not in seen:
                seen.add(signature)
                plans.append(RandomPlan(self._with_copies(arranged), self._checkpoint, self._changes))
        return plans

    def _arranged(self, rng: np.random.Generator) -> Iterator[_Arranged]:
        places: dict[tuple[str, ...], list[str]] = {}
        for pool in dict.fromkeys(self._pools.values()):
            places[pool] = [pool[place] for place in rng.permutation(len(pool))]
        for one in self._strengths:
            if one.method == "change":
                change = _as_matrix(self._changes[one.tensor], split=True)
                signs = rng.choice((-1.0, 1.0), len(change))
                yield _Arranged(one, one.tensor, signs, np.ones(1), order=rng.permutation(len(change)))
                continue
            tensor = places[self._pools[one.tensor]].pop()
            if one.method == "offset":
                yield _Arranged(one, tensor, np.ones(1), np.ones(1), offset=one.offset * rng.choice((-1.0, 1.0)))
            else:
                yield _Arranged(one, tensor, _shuffled(one.rows, rng), _shuffled(one.columns, rng))

    def _with_copies(self, arranged: Sequence[_Arranged]) -> dict[str, _Arranged]:
        return {name: one for one in arranged for name in self._copies.get(one.tensor, (one.tensor,))}


def _require_possible(edits: PlanEdits, changeable: frozenset[str], copies: Mapping[str, Sequence[str]]) -> None:
    added = [name for name, edit in edits.tensors.items() if edit.added is not None]
    if added:
        raise Unarrangeable(f"the plan adds tensors, such as {added[0]}, which the baseline does not have")
    absent = [name for name in edits.tensors if name not in changeable]
    if absent:
        raise Unarrangeable(f"{absent[0]} is not in the loaded model as it is stored")
    for name, edit in edits.tensors.items():
        for copy in copies.get(name, ()):
            other = edits.tensors.get(copy)
            if other is None or [s.operation for s in other.steps] != [s.operation for s in edit.steps]:
                raise Unarrangeable(f"the plan does not change {name} and {copy}, copies of one tied tensor, alike")


def _strength_of(edit: TensorEdit) -> _Strength:
    change = change_of(edit.steps, edit.folded.shape)
    rows, columns = (np.atleast_1d(np.asarray(side, np.float64)) for side in (change.rows, change.columns))
    if change.added == "nothing" and not change.measured and bool((rows > 0).all() and (columns > 0).all()):
        if rows.size == columns.size == 1:
            rows, columns = rows * columns, np.ones(1)
        method: Method = "factor" if rows.size == columns.size == 1 else "factors"
        return _Strength(edit.name, method, rows, columns)
    offsets = [
        settled(step.operation.offset)
        for step in edit.steps
        if isinstance(step.operation, Shift) and isinstance(step.selection, Everything)
    ]
    if len(offsets) == len(edit.steps):
        return _Strength(edit.name, "offset", np.ones(1), np.ones(1), offset=sum(offsets))
    return _Strength(edit.name, "change", np.ones(1), np.ones(1))


def _changes(edits: Mapping[str, TensorEdit], around: Surroundings) -> dict[str, _Floats]:
    """What these edits add to the stored values, by tensor; those that add nothing are left out."""
    found = {}
    for name, new in new_values(PlanEdits(dict(edits), {}), around).items():
        with np.errstate(invalid="ignore"):
            change = new - stored_values(around.checkpoint, name).astype(np.float32)
        if np.any(change):
            found[name] = change
    return found


def _as_matrix(values: _Floats, *, split: bool = False) -> _Floats:
    """[rows, columns]; a vector is one row, or with `split` one column, so that its elements can change places."""
    if values.ndim < 2:
        return values.reshape(-1, 1) if split else values.reshape(1, -1)
    return values.reshape(-1, values.shape[-1])


def _as_planned(one: _Strength, changes: Mapping[str, _Floats]) -> _Arranged:
    if one.method == "change":
        count = len(_as_matrix(changes[one.tensor], split=True))
        return _Arranged(one, one.tensor, np.ones(count), np.ones(1), order=np.arange(count))
    return _Arranged(one, one.tensor, one.rows, one.columns, offset=one.offset)


def _signature(arranged: Iterable[_Arranged]) -> frozenset[bytes]:
    return frozenset(one.signature for one in arranged)


def _shuffled(factors: _Floats, rng: np.random.Generator) -> _Floats:
    """The factors in a random order, each inverted with probability 1/2; equal neighbours stay together in blocks.

    A block is as long as the greatest common divisor of the places where the factor changes and of their number, so
    that a vector with a factor for each head stays one.
    """
    edges = np.flatnonzero(np.diff(factors)) + 1
    block = reduce(gcd, edges.tolist(), len(factors))
    first = factors[::block]
    moved = first[rng.permutation(len(first))] ** rng.choice((-1.0, 1.0), len(first))
    return np.repeat(moved, block)
