"""From modifications to steps on tensors: targets resolved, ramps settled, arrays read, elements found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from pydantic import ValidationError

from planner.architecture import role_of
from planner.checkpoint import Tensor
from planner.dtypes import float_dtype
from planner.edits.arrays import Provenance, read_array
from planner.edits.lora import Adapter, open_adapter
from planner.edits.selecting import as_matrix, selection_of
from planner.edits.steering import steering_place
from planner.edits.structured import structured_selections
from planner.edits.surroundings import Surroundings
from planner.edits.types import Added, ModificationEdits, PlanEdits, TensorEdit, Unresolved
from planner.errors import AdapterUnusable, ArrayUnusable
from planner.operations import (
    EVERYTHING,
    ArrayFile,
    BakeSteering,
    Blend,
    ChannelScale,
    HeadScale,
    LowRankAdd,
    NeuronScale,
    Operation,
    ProjectOut,
    RankOne,
    Rotate,
    Selection,
    Step,
)
from planner.operations.base import Values
from planner.operations.scale import Factors
from planner.plan import Modification, TargetUnmatched, resolve

__all__ = ["combined", "resolved"]

_FARTHEST = 5


def resolved(modification: Modification, around: Surroundings) -> ModificationEdits:
    """What a modification does to each tensor. Raises `Unresolved`."""
    try:
        return _Resolution(modification, around).run()
    except TargetUnmatched as error:
        raise Unresolved(str(error), hint=error.hint) from None
    except (ArrayUnusable, AdapterUnusable) as error:
        raise Unresolved(error.message, hint=error.hint, code=error.code) from None


def combined(edits: Iterable[ModificationEdits], around: Surroundings) -> PlanEdits:
    """All that some modifications do, tensor by tensor, each tensor's steps in the order of the plan."""
    steps: dict[str, list[Step]] = {}
    added: dict[str, Added] = {}
    config: dict[str, bool] = {}
    for edit in edits:
        config |= edit.config
        added |= {new.name: new for new in edit.added}
        for name, step in edit.steps.items():
            steps.setdefault(name, []).append(step)
    tensors = {}
    for name in [*steps, *(name for name in added if name not in steps)]:
        new = added.get(name)
        tensor = _future(new, around) if new else around.checkpoint.tensors[name]
        dtype = float_dtype(tensor.dtype)
        if dtype is None:
            continue  # check says so
        mine = tuple(steps.get(name, ()))
        tensors[name] = TensorEdit(tensor, dtype, mine, tuple(step.modification for step in mine), new)
    return PlanEdits(tensors, config)


def _future(new: Added, around: Surroundings) -> Tensor:
    like = around.checkpoint.tensors[new.like]
    size = like.nbytes // max(like.elements, 1)
    count = as_matrix(new.shape)[0] * as_matrix(new.shape)[1]
    return Tensor(new.name, new.dtype, new.shape, like.shard, 0, count * size)


class _Resolution:
    """One modification on its way to steps."""

    def __init__(self, modification: Modification, around: Surroundings) -> None:
        self.modification = modification
        self.around = around
        self.steps: dict[str, Step] = {}
        self.added: dict[str, Added] = {}
        self.config: dict[str, bool] = {}
        self.notes: dict[str, None] = {}
        self.provenance: dict[tuple[str, str], Provenance] = {}
        self.adapter: Adapter | None = None

    def run(self) -> ModificationEdits:
        target, operation = self.modification.target, self.modification.operation
        names = resolve(target, list(self.around.checkpoint.tensors))
        depths = _depths(names) if operation.has_ramp else {}
        if isinstance(operation, HeadScale | NeuronScale | ChannelScale):
            self._require_all(operation)
            explicit = bool(target.tensors or target.roles)
            for name, selection in structured_selections(operation, names, explicit, self.around.model).items():
                self._step(name, self._settled(operation, name, depths), selection)
        elif isinstance(operation, BakeSteering):
            self._require_all(operation)
            for name in names:
                self._steer(operation, name, depths)
        else:
            if isinstance(operation, LowRankAdd | RankOne) and operation.lora is not None:
                self._open_adapter(operation.lora, names)
            for name in names:
                self._one(operation, name, depths)
        return ModificationEdits(
            id=self.modification.id,
            steps=self.steps,
            added=tuple(self.added.values()),
            config=self.config,
            notes=tuple(self.notes),
            provenance=tuple(self.provenance.values()),
        )

    def _require_all(self, operation: Operation) -> None:
        if self.modification.target.elements.kind != "all":
            kind = type(operation).model_fields["kind"].default
            raise Unresolved(f"{kind} finds its elements itself", hint='leave `elements` out, or say {"kind": "all"}')

    def _one(self, operation: Operation, name: str, depths: dict[str, float]) -> None:
        tensor = self.around.checkpoint.tensors[name]
        dtype = float_dtype(tensor.dtype)
        if dtype is None:
            self._step(name, operation, EVERYTHING)  # check says that its values are not changed
            return
        operation = self._settled(operation, name, depths)
        if isinstance(operation, ProjectOut | Rotate) and operation.axis is None:
            operation = operation.model_copy(update={"axis": self._stream_axis(name)})
        selection, notes = selection_of(self.modification.target.elements, tensor, dtype, self.around)
        self.notes |= dict.fromkeys(notes)
        self._step(name, operation, selection)
        if isinstance(operation, Blend):
            rows = self.around.other_rows(operation.checkpoint, tensor)
            self.steps[name] = replace(self.steps[name], other=rows)

    def _settled(self, operation: Operation, name: str, depths: dict[str, float]) -> Operation:
        if not operation.has_ramp:
            return operation
        if name not in depths:
            raise Unresolved(
                f"a ramp goes over layers, and {name} is in none", hint="give it a modification of its own"
            )
        try:
            return operation.at_depth(depths[name])
        except ValidationError as error:
            why = "; ".join(found["msg"].removeprefix("Value error, ") for found in error.errors())
            raise Unresolved(
                f"the ramps make no sense together at {name}: {why}", hint="check them layer by layer"
            ) from None

    def _step(self, name: str, operation: Operation, selection: Selection, *, arrays_for: str | None = None) -> None:
        arrays = self._arrays(operation, arrays_for or name)
        self.steps[name] = Step(operation, selection, arrays, modification=self.modification.id)

    def _arrays(self, operation: Operation, name: str) -> dict[str, Values]:
        arrays: dict[str, Values] = {}
        for parameter in type(operation).model_fields:
            file = getattr(operation, parameter)
            if isinstance(file, ArrayFile):
                layer = role_of(name).layer
                array, provenance = read_array(file, self.around.folder, tensor=name, layer=layer)
                arrays[parameter] = array
                self.provenance[provenance.file, provenance.array] = provenance
                if isinstance(file, Factors):
                    self.notes[f"{name}: {_factors_in_words(array, file.axis)}"] = None
        if self.adapter is not None:
            known = self.around.model.parameters.get(name)
            update = self.adapter.update(name, transposed=known.transposed if known else None)
            arrays["scaling"] = np.asarray(update.scaling)
            if not isinstance(operation, RankOne):
                arrays |= {"a": update.a, "b": update.b}
            elif len(update.a) == 1:
                arrays |= {"u": update.b[:, 0], "v": update.a[0]}
            else:
                raise Unresolved(
                    f"the adapter changes {name} by a matrix of rank {len(update.a)}",
                    hint="use low_rank_add",
                    code="adapter-unusable",
                )
        return arrays

    def _stream_axis(self, name: str) -> str:
        known = self.around.model.parameters.get(name)
        axis = (known.reads or known.writes) if known else None
        if axis is None:
            kind = self.modification.operation.kind
            raise Unresolved(
                f"{name} neither reads the residual stream nor writes to it, as far as is known, so {kind} does not "
                "know which of its sides the direction belongs to",
                hint=self.around.model.reason or "name projections that read or write the stream, or give the `axis`",
            )
        return axis

    def _open_adapter(self, lora: str, names: tuple[str, ...]) -> None:
        self.adapter = open_adapter(lora, self.around.folder, self.around.shapes)
        changed = set(self.adapter.tensors)
        if strange := [name for name in names if name not in changed]:
            raise Unresolved(
                f"the adapter {lora} does not change {strange[0]}"
                + (f" and {len(strange) - 1} more of the target" if len(strange) > 1 else ""),
                hint="it changes " + ", ".join(sorted({role_of(name).role for name in changed})),
                code="adapter-unusable",
            )
        if left := changed - set(names):
            self.notes[f"the adapter also changes {len(left)} tensors that the target leaves out"] = None

    def _steer(self, operation: BakeSteering, weight: str, depths: dict[str, float]) -> None:
        place = steering_place(operation, weight, self.around)
        settled = self._settled(operation, weight, depths)
        if place.axis is not None:
            settled = settled.model_copy(update={"axis": place.axis})
        else:
            settled = settled.model_copy(update={"input": None, "without_bias": "refuse"})
        self._step(place.tensor, settled, EVERYTHING, arrays_for=weight)
        self.added |= {new.name: new for new in place.added}
        self.config |= dict(place.config)
        for key, value in place.config:
            zeros = len(place.added) - 1
            also = f", so {zeros} more biases of zeros are added, which that key asks for" if zeros > 0 else ""
            self.notes[f"config.json: {key} becomes {str(value).lower()}{also}"] = None
        if place.axis is not None:
            self.notes[f"{weight} gets a rank-one change: exact for the given input, an approximation for others"] = (
                None
            )


def _factors_in_words(factors: Values, axis: str) -> str:
    """Their range, and those that are farthest from one."""
    flat = np.asarray(factors, dtype=np.float64).reshape(-1)
    with np.errstate(divide="ignore"):
        distance = np.abs(np.log(np.abs(flat)))
    farthest = np.argsort(-distance, kind="stable")[:_FARTHEST]
    named = ", ".join(f"{axis[:-1]} {place} x{flat[place]:.3g}" for place in farthest)
    return (
        f"{flat.size:,} factors by {axis[:-1]}, {flat.min():.3g} to {flat.max():.3g}, median {np.median(flat):.3g}; "
        f"farthest from one: {named}"
    )


def _depths(names: tuple[str, ...]) -> dict[str, float]:
    """For each tensor that is in a layer, where its layer stands between the first and the last that are named."""
    layers = {name: layer for name in names if (layer := role_of(name).layer) is not None}
    if not layers:
        return {}
    first, last = min(layers.values()), max(layers.values())
    return {name: (layer - first) / (last - first) if last > first else 0.0 for name, layer in layers.items()}
