"""A second model with the weights that a plan leaves, in memory: what it does not change is shared with the first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.checkpoint import Checkpoint
from planner.edits import PlanEdits, Surroundings, Unresolved, combined, new_values, resolved, surroundings_of
from planner.errors import PlanNotApproved, PlanRefused, StalePlan, UsageError
from planner.inference import parameters_by_tensor
from planner.plan import Plan, undecided
from planner.profile import Profile

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["PlannedChange", "blocks_that_differ", "changed_model", "planned_change"]

_ELSEWHERE = "apply the plan with `planner apply --out DIR`, and give the result with --candidate DIR"


@dataclass(frozen=True, eq=False)
class PlannedChange:
    """What a plan does to a checkpoint."""

    plan: str
    """Id of the plan."""
    edits: PlanEdits
    around: Surroundings


def planned_change(plan: Plan, checkpoint: Checkpoint, profile: Profile, folder: Path) -> PlannedChange:
    """What the plan does to each tensor; modifications that were rejected are left out, and none need be approved.

    `folder` is where relative paths in the plan begin. Raises `StalePlan` where the profile is of another checkpoint,
    `PlanNotApproved` where every modification was rejected, and `PlanRefused` where one does not fit the checkpoint.
    """
    if plan.checkpoint.fingerprint != profile.fingerprint:
        raise StalePlan(
            f"the plan was made for {plan.checkpoint.fingerprint[:19]}; "
            f"{checkpoint.path} is {profile.fingerprint[:19]}",
            hint="name the checkpoint that the plan was made for, or propose a plan for this one",
        )
    open_ids = {modification.id for modification in undecided(plan)}
    chosen = [m for m in plan.modifications if m.id in open_ids or plan.review[m.id].decision == "approved"]
    if not chosen:
        raise PlanNotApproved("no modification of the plan is left", hint="all were rejected; there is nothing to see")
    around = surroundings_of(checkpoint, folder, profile=profile)
    try:
        edits = combined([resolved(modification, around) for modification in chosen], around)
    except Unresolved as error:
        raise _refused(error) from None
    return PlannedChange(plan.id, edits, around)


def _refused(error: ValueError) -> PlanRefused:
    return PlanRefused(
        f"the plan does not fit the checkpoint: {error}",
        hint="`planner check PLAN --model MODEL` shows everything that is wrong with it",
    )


def changed_model(model: Any, change: PlannedChange) -> Any:
    """A model like `model`, which was loaded from the change's checkpoint, with the weights that `apply` would store.

    It shares every other parameter with `model`. Memory: the edited parameters once more, and the largest of them.

    Raises `UsageError` where the plan does what cannot be shown in a loaded model: tensors are added, config.json
    changes, a tensor is no parameter of the model, two stored copies of one parameter would differ. Raises
    `PlanRefused` where an operation does not fit its tensor.
    """
    import torch

    edits, checkpoint = change.edits, change.around.checkpoint
    parameters = parameters_by_tensor(model, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    _refuse_unshowable(edits, checkpoint, parameters)
    edited = {id(parameters[name]) for name in edits.tensors}
    # What deepcopy finds in its memo it does not copy.
    kept: dict[int, Any] = {id(one): one for one in [*model.parameters(), *model.buffers()] if id(one) not in edited}
    changed = copy.deepcopy(model, kept)
    places = parameters_by_tensor(changed, {name: edit.tensor.shape for name, edit in edits.tensors.items()})
    written: dict[int, str] = {}
    for name, edit in edits.tensors.items():
        try:
            values = torch.from_numpy(new_values(PlanEdits({name: edit}, {}), change.around)[name])
        except ValueError as error:  # an array of another length, no such singular value
            raise _refused(error) from None
        parameter = places[name]
        values = values.reshape(parameter.shape).to(parameter.dtype)
        other = written.setdefault(id(parameter), name)
        if other != name and not torch.equal(parameter, values):
            raise UsageError(f"{other} and {name} are one parameter, and would differ", hint=_ELSEWHERE)
        with torch.no_grad():
            parameter.copy_(values)
    return changed


def _refuse_unshowable(edits: PlanEdits, checkpoint: Checkpoint, parameters: dict[str, Any]) -> None:
    added = [name for name, edit in edits.tensors.items() if edit.added]
    keys = [key for key, value in edits.config.items() if checkpoint.config.get(key) != value]
    if added or keys:
        what = f"adds {added[0]}" if added else f"changes {keys[0]} in config.json"
        raise UsageError(f"the plan {what}, which a loaded model cannot take up", hint=_ELSEWHERE)
    if strange := [name for name in edits.tensors if name not in parameters]:
        raise UsageError(f"{strange[0]} is no parameter of the loaded model under its own name", hint=_ELSEWHERE)
    edited = {id(parameters[name]) for name in edits.tensors}
    for name, parameter in parameters.items():
        if id(parameter) in edited and name not in edits.tensors:
            raise UsageError(
                f"{name} is stored as a copy of a tensor that the plan changes; loaders differ on what they do then",
                hint=_ELSEWHERE,
            )


def blocks_that_differ(one: Sequence[Module], other: Sequence[Module]) -> list[int]:
    """Places of the blocks that do not hold the same weights."""
    return [place for place, pair in enumerate(zip(one, other, strict=True)) if _differ(*pair)]


def _differ(one: Module, other: Module) -> bool:
    import torch

    mine, theirs = one.state_dict(), other.state_dict()
    if mine.keys() != theirs.keys():
        return True
    return any(
        tensor.data_ptr() != theirs[name].data_ptr() and not torch.equal(tensor, theirs[name])
        for name, tensor in mine.items()
    )
