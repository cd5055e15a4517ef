"""A portable patch (`patch_file`) on its way into a checkpoint (`staging.Patching`).

Nobody checked it here before, so it is tried first, without a byte being written: the tensors that it changes are what
it says they were, they become what it says they become, and they move as far as it says and as the policy allows. What
it adds are the biases that the architecture has a place for, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import isclose, prod
from pathlib import Path
from typing import Any

import numpy as np

from planner.architecture import map_of
from planner.checkpoint import Checkpoint, Tensor, fingerprint_checkpoint
from planner.dtypes import FloatDtype, bytes_needed, float_dtype
from planner.errors import LedgerDamaged, PatchUnusable, PlanRefused, StalePlan
from planner.plan import Policy
from planner.transaction.layout import INDEX, added_to, extended_header, extended_index
from planner.transaction.ledger import read_ledger
from planner.transaction.pieces import PIECE, Added, Bytes, Change
from planner.transaction.portable.patch_file import (
    PatchHead,
    PatchTensor,
    PortablePatch,
    damaged,
    is_portable,
    patch_statement,
)
from planner.transaction.portable.trial import Trial, pieces_of, square_sum, usable
from planner.transaction.progress import Steps
from planner.transaction.undo.residuals import Coding
from planner.transaction.undo.way_back import Framed, piece_count
from planner.transaction.work import Work

__all__ = ["PatchHead", "PortablePatch", "PortedPatch", "is_portable", "new_config", "patch_statement"]

_SAID = 1e-3  # sums in another order differ by far less
_STEERING = "bake_steering"
_STRUCTURED = ("head_scale", "neuron_scale", "channel_scale")
_CONFIG = "config.json"


class PortedPatch:
    """A portable patch that is applied to a checkpoint."""

    def __init__(self, patch: PortablePatch, policy: Policy, told: Steps) -> None:
        self._patch, self.policy, self.told = patch, policy, told
        self.plan = patch.plan

    @property
    def digests(self) -> dict[str, str]:
        """Of every tensor that changes or is new, as it must be afterwards."""
        return {tensor.name: tensor.after for tensor in self._patch.head.tensors}

    def work_on(self, checkpoint: Checkpoint) -> Work:
        """What it does to the checkpoint. Raises `StalePlan`, `PlanRefused` or `PatchUnusable`."""
        self._refuse_beyond_policy()
        self._refuse_other_ledger(checkpoint)
        try:
            work = self.work_again(checkpoint)
            self._try(checkpoint)
        except (PatchUnusable, StalePlan) as error:
            if fingerprint_checkpoint(checkpoint) != self._patch.head.fingerprint_before:
                raise self._other_base(checkpoint) from None
            if isinstance(error, StalePlan):
                raise damaged("what it says of the tensors of its base is not so") from None
            raise
        return work

    def work_again(self, checkpoint: Checkpoint) -> Work:
        """The same, of the same checkpoint under another name; it is not tried again."""
        head = self._patch.head
        additions = self._additions(checkpoint)
        added = added_to(checkpoint, list(additions.values()))
        there = [tensor for tensor in head.tensors if tensor.before is not None]
        tables = self._tables(checkpoint, there)
        changed = self._as_planned(there, list(checkpoint.tensors))
        files = {_CONFIG: new_config(checkpoint.config, head.config)} if head.config else {}
        if added and (index := extended_index(checkpoint, added)) is not None:
            files[INDEX] = index
        return Work(
            checkpoint,
            {
                tensor.name: Change(coding=tables[tensor.frames.table])
                if tensor.frames.table
                else Change(content=partial(_content, self._patch, tensor, checkpoint))
                for tensor in changed
            },
            {tensor.name: tensor.modifications for tensor in changed},
            added={shard: [additions[one.name].added() for one in those] for shard, those in added.items()},
            headers={shard: extended_header(checkpoint, shard, those) for shard, those in added.items()},
            files=files,
            relative={tensor.name: tensor.relative_change for tensor in changed},
        )

    def keep_beside(self, records: Path) -> None:
        """Nothing: what the plan read is not in the patch."""

    def undo_bytes(self, work: Work) -> int:
        """At most how large the undo data become."""
        return sum(work.checkpoint.tensors[name].nbytes for name in work.changes.tensors)

    def _tables(self, checkpoint: Checkpoint, changed: list[PatchTensor]) -> dict[str, Coding]:
        """Every table. Raises `PatchUnusable` for one that is not of its tensor's patterns, `StalePlan`."""
        tables: dict[str, Coding] = {}
        for tensor in changed:
            here = checkpoint.tensors.get(tensor.name)
            if here is None or (here.dtype, here.shape) != (tensor.dtype, tensor.shape):
                raise self._other_base(checkpoint)
            dtype = _float_dtype(tensor)
            if table := tensor.frames.table:
                with usable():
                    tables[table] = tables.get(table) or self._patch.data.table(table)
                if tables[table].pattern != dtype.pattern:
                    raise damaged(f"{table} is no table for {tensor.name}")
        return tables

    def _additions(self, checkpoint: Checkpoint) -> dict[str, _Addition]:
        """The biases that it adds. Raises `PatchUnusable` unless they are all that the changed configuration asks for.

        The names and shapes are those that `planner.edits` gives to biases of a steering vector.
        """
        head = self._patch.head
        new = {tensor.name: tensor for tensor in head.tensors if tensor.before is None}
        if not new and not head.config:
            return {}
        if _STEERING not in self._kinds():
            raise damaged("it adds biases, and nothing in its plan does")
        model = map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
        config = checkpoint.config | head.config
        owners = {
            owner.bias: owner
            for owner in model.parameters.values()
            if owner.bias and owner.bias not in checkpoint.tensors and config.get(owner.bias_flag or "") is True
        }
        flags = {owner.bias_flag for owner in owners.values()}
        if owners.keys() != new.keys() or not all(key in flags and value for key, value in head.config.items()):
            raise PatchUnusable(
                f"the patch adds other tensors than the biases that {', '.join(head.config) or _CONFIG} gives to a "
                f"{model.family} model",
                hint="do not use it; have it made again, by somebody you trust",
            )
        found = {}
        steered = [tensor for tensor in new.values() if tensor.modifications]
        steered = self._as_planned(steered, [owner.bias or "" for owner in owners.values()])
        for name in dict.fromkeys([*(tensor.name for tensor in steered), *owners]):
            tensor = new[name]
            like = checkpoint.tensors[owners[name].name]
            if (tensor.dtype, tensor.shape) != (like.dtype, (like.shape[1 if owners[name].transposed else 0],)):
                raise damaged(f"{name} is no bias for {like.name}")
            _float_dtype(tensor)
            found[name] = _Addition(self._patch, tensor, like.name)
        return found

    def _try(self, checkpoint: Checkpoint) -> None:
        """Make every new byte once, and compare. Raises `StalePlan`, `PlanRefused` or `PatchUnusable`."""
        told, policy = self.told.step("trying"), self.policy
        moved = was = 0.0
        problems = []
        changed = [tensor for tensor in self._patch.head.tensors if tensor.before is not None]
        tables = self._tables(checkpoint, changed)
        for tensor in changed:
            trial = Trial(_float_dtype(tensor))
            trial.change(self._patch, tensor, checkpoint, tables.get(tensor.frames.table or ""), told)
            if trial.before != tensor.before:
                raise self._other_base(checkpoint)
            _refuse_untrue(tensor, trial)
            if trial.broken:
                problems.append(f"{trial.broken:,} elements of {tensor.name} would become NaN or infinite")
            elif trial.relative is None or trial.relative > policy.largest_relative_change:
                size = "without bound" if trial.relative is None else f"by {trial.relative:.3g} of its norm"
                problems.append(f"{tensor.name} would change {size}, beyond {policy.largest_relative_change:g}")
            moved, was = moved + trial.moved, was + trial.was
        new = self._additions(checkpoint)
        for addition in new.values():
            trial = Trial(_float_dtype(addition.tensor))
            trial.make(addition.content())
            _refuse_untrue(addition.tensor, trial)
            if trial.broken:
                problems.append(f"{trial.broken:,} elements of {addition.name} would be NaN or infinite")
            moved += trial.moved
        # What no tensor exceeds, all together do not; unless there are new ones.
        if not problems and (new or policy.largest_total_change < policy.largest_relative_change):
            was += square_sum(checkpoint, {tensor.name for tensor in changed}, told)
            if moved > policy.largest_total_change * policy.largest_total_change * was:
                total = f"by {(moved / was) ** 0.5:.3g} of their norm" if was else "without bound"
                problems.append(f"all tensors together would change {total}, beyond {policy.largest_total_change:g}")
        if problems:
            raise _refused(problems)

    def _refuse_beyond_policy(self) -> None:
        policy, head = self.policy, self._patch.head
        problems = [
            f"{kind}: not among the operations allowed" for kind in sorted(self._kinds() - {*policy.operations})
        ]
        problems += [
            f"{tensor.name}: protected by the policy" for tensor in head.tensors if policy.protects(tensor.name)
        ]
        if len(head.tensors) > policy.most_tensors:
            problems.append(f"it changes {len(head.tensors):,} tensors; most_tensors = {policy.most_tensors:,}")
        if len(self.plan.modifications) > policy.most_modifications:
            problems.append(f"it has {len(self.plan.modifications):,} modifications, beyond most_modifications")
        if problems:
            raise _refused(problems)

    def _refuse_other_ledger(self, checkpoint: Checkpoint) -> None:
        """Raise `StalePlan` where the history says that this is another checkpoint, and it is."""
        base, ledger = self._patch.head.fingerprint_before, None
        with suppress(LedgerDamaged):
            ledger = read_ledger(checkpoint.path)
        if ledger and ledger.current.fingerprint != base and fingerprint_checkpoint(checkpoint) != base:
            raise self._other_base(checkpoint)

    def _as_planned(self, tensors: list[PatchTensor], names: list[str]) -> list[PatchTensor]:
        """In the order in which a plan for this checkpoint has them, which is in its card: by modification, and by
        place in `names` where an operation is done to one tensor after the other."""
        ids = {modification.id: number for number, modification in enumerate(self.plan.modifications)}
        kinds = {modification.id: modification.operation.kind for modification in self.plan.modifications}
        places = {name: number for number, name in enumerate(names)}
        return sorted(
            tensors,
            key=lambda tensor: min(
                (
                    (ids[one], 0 if kinds[one] in _STRUCTURED else places[tensor.name])
                    for one in tensor.modifications[:1]
                ),
                default=(len(ids), 0),
            ),
        )

    def _kinds(self) -> set[str]:
        return {modification.operation.kind for modification in self._patch.modifications()}

    def _other_base(self, checkpoint: Checkpoint) -> StalePlan:
        head = self._patch.head
        return StalePlan(
            f"{checkpoint.path} is not the base of the patch, {head.base}, {head.fingerprint_before[:19]}",
            hint="apply it to that base, or apply the plan itself to another: `planner propose` makes one",
        )


@dataclass(frozen=True)
class _Addition:
    """A bias that the patch adds (`edits.Addition`)."""

    patch: PortablePatch
    tensor: PatchTensor
    like: str

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def modifications(self) -> tuple[str, ...]:
        return self.tensor.modifications

    def content(self) -> Iterator[bytes]:
        """Its bytes, in order, in pieces."""
        for piece in self.pieces():
            yield piece.tobytes()

    def pieces(self) -> Iterator[Bytes]:
        nbytes = bytes_needed(self.dtype, self.shape)
        layer = Framed(
            self.patch.data, self.tensor.frames, Tensor(self.name, self.dtype, self.shape, "", 0, nbytes), None
        )
        for number in range(piece_count(nbytes)):
            old = np.zeros(min(PIECE, nbytes - number * PIECE), np.uint8)
            new = np.empty_like(old)
            with usable():
                layer.back(number, old, new)
            yield new

    def added(self) -> Added:
        nbytes = bytes_needed(self.dtype, self.shape)
        return Added(self.name, self.pieces, nbytes, prod(self.shape), self.modifications)


def _refuse_untrue(tensor: PatchTensor, trial: Trial) -> None:
    if trial.after != tensor.after:
        raise damaged(f"it makes something else of {tensor.name} than it says")
    if tensor.before is not None and not isclose(
        tensor.relative_change or 0.0, trial.relative or 0.0, rel_tol=_SAID, abs_tol=1e-12
    ):
        raise PatchUnusable(
            f"the patch says that it moves {tensor.name} by {tensor.relative_change}; it moves it by {trial.relative}",
            hint="do not use it; have it made again, by somebody you trust",
        )


def _content(patch: PortablePatch, tensor: PatchTensor, checkpoint: Checkpoint) -> Iterator[Bytes]:
    here = checkpoint.tensors[tensor.name]
    layer = Framed(patch.data, tensor.frames, here, None)
    for number, old in enumerate(pieces_of(checkpoint, here)):
        new = np.empty_like(old)
        with usable():
            layer.back(number, old, new)
        yield new


def new_config(config: Mapping[str, Any], changed: Mapping[str, bool]) -> bytes:
    """config.json with some keys changed: the bytes that a plan which changes them writes."""
    return json.dumps({**config, **changed}, indent=2, ensure_ascii=False).encode() + b"\n"


def _float_dtype(tensor: PatchTensor) -> FloatDtype:
    dtype = float_dtype(tensor.dtype)
    if dtype is None:
        raise PatchUnusable(
            f"{tensor.name[:80]} is {tensor.dtype[:40]}, whose values are not changed", hint="choose another patch"
        )
    return dtype


def _refused(problems: list[str]) -> PlanRefused:
    return PlanRefused(
        "the policy does not allow the patch",
        hint="choose another patch, or another --policy",
        problems=tuple(problems),
    )
