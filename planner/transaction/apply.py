"""Apply a plan: stage a complete new checkpoint, prove it, and give it its name in one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from blake3 import blake3

from planner import __version__, fsio
from planner.checkpoint import Checkpoint, digest_bytes, open_checkpoint
from planner.dtypes import float_dtype
from planner.effects import CheckReport, check, operations_by_tensor
from planner.errors import (
    LedgerDamaged,
    OutputExists,
    PlanRefused,
    StalePlan,
    UsageError,
    VoidModification,
)
from planner.operations import Operation, fold
from planner.plan import Modification, Plan, Policy, approved, write_plan
from planner.profile import profile_of
from planner.transaction.history import copy_patch
from planner.transaction.ledger import (
    PLAN,
    RECEIPT,
    encode_ledger,
    ledger_path,
    patch_folder,
    read_ledger,
    write_record,
)
from planner.transaction.progress import Progress, Steps
from planner.transaction.stage import exclusive, proven, publish, refuse_unsafe, stage_files, staged, swap_in
from planner.transaction.state import measure
from planner.transaction.types import Event, Ledger, Parent, Receipt, ReceiptTensor, State
from planner.transaction.undo import write_undo

__all__ = ["apply_plan"]

_HEADROOM = 1.01  # folders, ledger and receipts beside the weights


def apply_plan(
    plan: Plan,
    model: Path,
    *,
    out: Path | None,
    policy: Policy,
    by: str,
    allow_void: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Apply the approved modifications of `plan` to the checkpoint in `model`, as one transaction.

    With `out`, the result is a new folder and `model` is only read; else `model` itself changes, by one exchange of
    folders. Until that one step nothing has changed anywhere; afterwards everything has.

    Raises `PlanNotApproved`, `StalePlan`, `PlanRefused`, `VoidModification`, `OutputExists`, `UnsafeInPlace`,
    `Locked`, `LedgerDamaged`, another `StorageError` or a `CheckpointError`.
    """
    modifications = approved(plan)
    if out is None:
        refuse_unsafe(model)
    final = model if out is None else out
    _refuse_unusable(out, model)
    with exclusive(final):
        _refuse_unusable(out, model)
        checkpoint = open_checkpoint(model)
        ledger = None if out else read_ledger(model)
        told = Steps(progress, checkpoint.nbytes)
        before = measure(checkpoint, progress=told.step("hashing"))
        if before.fingerprint != plan.checkpoint.fingerprint:
            raise StalePlan(
                f"{model} is {before.fingerprint[:19]}; the plan was made for {plan.checkpoint.fingerprint[:19]}",
                hint="propose a plan for the checkpoint as it is now: `planner propose`",
            )
        if ledger and ledger.current.fingerprint != before.fingerprint:
            raise LedgerDamaged(
                f"{model} is not what its ledger says, so its earlier patches could not be taken back afterwards",
                hint="`planner verify MODEL` names what differs; --out DIR begins a new history",
            )
        chosen = plan.model_copy(update={"modifications": modifications, "review": {}})
        report = _accepted(chosen, checkpoint, before, policy, allow_void=allow_void)
        changes = _changes(checkpoint, modifications, report)
        fsio.require_space(final.parent, _bytes_needed(checkpoint, before, changes, in_place=out is None))
        with staged(final, like=model) as stage:
            stage_files(
                checkpoint,
                stage,
                {change.name: change.content for change in changes},
                share=out is None,
                progress=told.step("writing"),
            )
            digests = {change.name: change.digest for change in changes}
            after = proven(checkpoint, stage, before, digests, progress=told.step("verifying"))
            receipt = _record(plan, modifications, checkpoint, stage, ledger, before, after, changes, by=by, out=out)
            (swap_in if out is None else publish)(stage, final)
    return receipt


class _Change:
    """What is done to one tensor; knows what it wrote once `content` has run through."""

    def __init__(
        self, checkpoint: Checkpoint, name: str, operations: Sequence[tuple[str, Operation]], relative: float | None
    ) -> None:
        self.name = name
        self.modifications = tuple(modification for modification, _ in operations)
        self.relative_change = relative
        self.changed_elements = 0
        self.digest = ""
        self._checkpoint = checkpoint
        self._operations = [operation for _, operation in operations]

    def content(self) -> Iterator[bytes]:
        """The new bytes of the tensor."""
        tensor = self._checkpoint.tensors[self.name]
        dtype = float_dtype(tensor.dtype)
        assert dtype is not None, "check refuses a target whose dtype is not understood"
        transform = fold(self._operations, dtype)
        hasher = blake3()
        self.changed_elements = 0
        for chunk in self._checkpoint.chunks(tensor):
            old = dtype.patterns(chunk)
            new = transform(old)
            self.changed_elements += int(np.count_nonzero(old != new))
            written = new.tobytes()
            hasher.update(written)
            yield written
        self.digest = "blake3:" + hasher.hexdigest()


def _refuse_unusable(out: Path | None, model: Path) -> None:
    if out is None:
        return
    if model.resolve() in out.resolve().parents:
        raise UsageError(f"{out} lies inside the model", hint="choose a folder outside of it with --out")
    with fsio.storage_errors(out):
        if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise OutputExists(f"{out} exists and is not empty", hint="choose a new folder with --out, or remove it")
    fsio.require_folder_of(out)


def _accepted(plan: Plan, checkpoint: Checkpoint, before: State, policy: Policy, *, allow_void: bool) -> CheckReport:
    profile = profile_of(checkpoint, keep=False)  # apply writes nothing but what it was asked to
    if profile.fingerprint != before.fingerprint:  # the kept profile is of other bytes; the disk decides
        profile = profile_of(checkpoint, force=True, keep=False)
    report = check(plan, checkpoint, profile, policy, allow_void=allow_void)
    if report.problems:
        only_void = all(problem.code == "void-modification" for problem in report.problems)
        refused = VoidModification if only_void else PlanRefused
        count = len(report.problems)
        raise refused(
            f"the plan has {count} problem{'s' if count > 1 else ''}",
            hint="see them all with their previews: `planner check PLAN --model MODEL`",
            problems=tuple(str(problem) for problem in report.problems),
        )
    return report


def _changes(checkpoint: Checkpoint, modifications: Sequence[Modification], report: CheckReport) -> list[_Change]:
    """One change a tensor, leaving out those whose bits stay."""
    outcomes = {tensor.name: tensor for tensor in report.tensors}
    return [
        _Change(checkpoint, name, operations, outcomes[name].relative_change)
        for name, operations in operations_by_tensor(modifications, checkpoint).items()
        if outcomes[name].changed_elements
    ]


def _bytes_needed(checkpoint: Checkpoint, before: State, changes: Sequence[_Change], *, in_place: bool) -> int:
    rewritten = {checkpoint.tensors[change.name].shard for change in changes}
    copied = sum(state.size for name, state in before.files.items() if not in_place or name in rewritten)
    undo = sum(checkpoint.tensors[change.name].nbytes for change in changes)
    return int((copied + undo) * _HEADROOM) + 2**20


def _record(
    plan: Plan,
    modifications: Sequence[Modification],
    checkpoint: Checkpoint,
    stage: Path,
    ledger: Ledger | None,
    before: State,
    after: State,
    changes: Sequence[_Change],
    *,
    by: str,
    out: Path | None,
) -> Receipt:
    """Write undo data, plan, receipt and ledger into the stage."""
    for event in ledger.events if ledger else ():
        if event.kind == "applied":
            copy_patch(checkpoint.path, stage, event.patch)
    number = 1 + max((event.patch for event in ledger.events), default=0) if ledger else 1
    folder = patch_folder(stage, number)
    fsio.ensure_folder(folder)
    content = write_plan(plan)
    undo_bytes = write_undo(folder, checkpoint, [change.name for change in changes], before.tensors)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    receipt = Receipt(
        patch=number,
        plan=plan.id,
        plan_digest=digest_bytes(content),
        at=now,
        by=by,
        planner_version=__version__,
        path=str(out or checkpoint.path),
        in_place=out is None,
        fingerprint_before=before.fingerprint,
        fingerprint_after=after.fingerprint,
        modifications=tuple(modification.id for modification in modifications),
        rejected=tuple(name for name, decision in plan.review.items() if decision.decision == "rejected"),
        tensors=tuple(
            ReceiptTensor(
                name=change.name,
                shard=checkpoint.tensors[change.name].shard,
                modifications=change.modifications,
                before=before.tensors[change.name],
                after=change.digest,
                elements=checkpoint.tensors[change.name].elements,
                changed_elements=change.changed_elements,
                relative_change=change.relative_change,
            )
            for change in changes
        ),
        undo_bytes=undo_bytes,
    )
    write_record(folder / PLAN, content)
    write_record(folder / RECEIPT, receipt.model_dump_json(indent=2).encode() + b"\n")
    event = Event(
        kind="applied",
        patch=number,
        at=now,
        by=by,
        fingerprint=after.fingerprint,
        plan=plan.id,
        plan_digest=receipt.plan_digest,
        goal=plan.goal,
        modifications=len(modifications),
        changed_tensors=len(changes),
        changed_elements=sum(change.changed_elements for change in changes),
    )
    parent = Parent(name=checkpoint.name, fingerprint=before.fingerprint) if out else None
    base = ledger or Ledger(serial=0, parent=parent, original=before, current=before, in_force=(), events=())
    updated = base.model_copy(
        update={
            "serial": base.serial + 1,
            "current": after,
            "in_force": (*base.in_force, number),
            "events": (*base.events, event),
        }
    )
    write_record(ledger_path(stage), encode_ledger(updated))
    return receipt
