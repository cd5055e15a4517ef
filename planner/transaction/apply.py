"""Apply a plan: stage a complete new checkpoint, prove it, and give it its name in one step."""

from __future__ import annotations

from pathlib import Path

from planner import fsio
from planner.checkpoint import Checkpoint, open_checkpoint
from planner.errors import LedgerDamaged, StalePlan
from planner.plan import Modification, Plan, Policy, approved, policy_digest, verify_approval
from planner.transaction.checked_plan import CheckedPlan
from planner.transaction.history import copy_patch
from planner.transaction.in_place.low_space import refuse_other_sizes, slot_bytes
from planner.transaction.ledger import patch_folder
from planner.transaction.places import refuse_in_place, refuse_linked, refuse_output, refuse_special_modes
from planner.transaction.portable.porting import PortablePatch, PortedPatch
from planner.transaction.progress import Progress, Steps
from planner.transaction.record import Approval, Recording
from planner.transaction.seal import require_seal
from planner.transaction.sighting import Sighting
from planner.transaction.stage import own_name, publish, require_exchange, staged, swap_in
from planner.transaction.staging import Expected, Source, Staging
from planner.transaction.state import files_of
from planner.transaction.types import Ledger, Receipt
from planner.transaction.work import Work
from planner.transaction.writer import exclusive
from planner.transaction.writing import new_size

__all__ = ["apply_patch", "apply_plan"]

_HEADROOM = 1.01  # folders, ledger and receipts beside the weights
_RECORDS = 2**20  # bytes, likewise


def apply_plan(
    plan: Plan,
    model: Path,
    *,
    out: Path | None,
    policy: Policy,
    by: str,
    folder: Path | None = None,
    allow_void: bool = False,
    low_space: bool = False,
    card: bool | None = None,
    approval_key: bytes | None = None,
    expected: Receipt | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Apply the approved modifications of `plan` to the checkpoint in `model`, as one transaction.

    `folder` is where relative paths in the plan begin; the current folder by default.

    With `out`, the result is a new folder and `model` is only read; else `model` itself changes, by one exchange of
    folders. Until that one step nothing has changed anywhere; afterwards everything has. With `low_space` there is no
    second copy of the weights: `model` is moved aside, overwritten in its place under a journal, and put back.

    `card` says whether README.md lists the modifications; by default that of a new folder does. With `expected`, a
    receipt of the same plan from elsewhere, the result must have the digests that it has.

    Raises `PlanNotApproved`, `StalePlan`, `PlanRefused`, `VoidModification`, `OutputExists`, `UnsafeInPlace`,
    `FileInUse`, `Locked`, `LedgerDamaged`, another `StorageError` or a `CheckpointError`.
    """
    modifications = approved(plan, policy, approval_key=approval_key)
    approval = Approval(policy_digest(policy), verify_approval(plan, policy, approval_key=approval_key))
    told = Steps(progress)
    return _applied(
        CheckedPlan(plan, modifications, policy, folder or Path(), allow_void, told),
        modifications,
        approval,
        model,
        out=out,
        by=by,
        low_space=low_space,
        card=card,
        expected=_digests_of(expected) if expected else None,
    )


def apply_patch(
    patch: PortablePatch,
    model: Path,
    *,
    out: Path | None,
    policy: Policy,
    by: str,
    signed_by: str | None = None,
    low_space: bool = False,
    card: bool | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Apply a patch that was made elsewhere: bytes, and the plan that they came from. See `apply_plan`.

    How far each tensor moves is measured and held to `policy`; whether the bytes are what the plan says is known by
    whose signature the patch has (`signed_by`), or by applying the plan itself. Raises what `apply_plan` raises, and
    `PatchUnusable`.
    """
    modifications = patch.modifications()
    approval = Approval(policy_digest(policy), signed_by)
    told = Steps(progress)
    ported = PortedPatch(patch, policy, told)
    return _applied(
        ported,
        modifications,
        approval,
        model,
        out=out,
        by=by,
        low_space=low_space,
        card=card,
        expected=Expected(ported.digests, patch.head.fingerprint_after),
    )


def _applied(
    patch: CheckedPlan | PortedPatch,
    modifications: tuple[Modification, ...],
    approval: Approval,
    model: Path,
    *,
    out: Path | None,
    by: str,
    low_space: bool,
    card: bool | None,
    expected: Expected | None,
) -> Receipt:
    model, out = own_name(model), None if out is None else own_name(out)
    final = model if out is None else out
    _refuse_place(model, out, locked=False)
    if low_space:
        refuse_special_modes(model)
    with exclusive(final):
        _refuse_place(model, out, locked=True)
        if out is None:
            refuse_linked(model)
        seen = Sighting.of(model)
        checkpoint = open_checkpoint(model)
        patch.told.total = checkpoint.nbytes
        source = Source.of(checkpoint, in_place=out is None)
        require_seal(model, source.ledger)
        work = _work(patch, checkpoint, source.ledger)
        if low_space:
            refuse_other_sizes(work.changes)
        # Where room is short, an upper bound that is far too high would refuse what can be done: then the undo data,
        # which are written before anything is overwritten, show whether there is enough.
        undo = 0 if low_space else patch.undo_bytes(work)
        needed = _bytes_needed(checkpoint, work, undo, in_place=out is None, low_space=low_space)
        fsio.require_space(final.parent, needed, otherwise=_OTHERWISE[out is None, low_space])
        with staged(final) as stage:
            if out is None and not low_space:
                require_exchange(stage)
            number = _carry_over(checkpoint.path, stage, source.ledger)
            recording = Recording(patch.plan, modifications, work, number, by, final, out is None, approval)
            staging = Staging(patch, source, recording, stage, low_space=low_space)
            receipt = staging.fill(card=out is not None if card is None else card, expected=expected)
            if low_space:
                staging.change_in_place(final, receipt, seen)
            elif out is None:
                swap_in(stage, final, seen)
            else:
                publish(stage, final, like=checkpoint.path)
    return receipt


def _digests_of(receipt: Receipt) -> Expected:
    return Expected({tensor.name: tensor.after for tensor in receipt.tensors}, receipt.fingerprint_after)


def _refuse_place(model: Path, out: Path | None, *, locked: bool) -> None:
    if out is None:
        refuse_in_place(model, locked=locked)
    else:
        refuse_output(out, model)


def _work(patch: CheckedPlan | PortedPatch, checkpoint: Checkpoint, ledger: Ledger | None) -> Work:
    """What there is to do. Raises `LedgerDamaged` where either the plan or the ledger is about other weights."""
    meant = patch.plan.checkpoint.fingerprint
    try:
        work = patch.work_on(checkpoint)
    except StalePlan:
        if ledger is None or ledger.current.fingerprint != meant:
            raise
        raise LedgerDamaged(
            f"{checkpoint.path} is not what its ledger says; the plan is for what it should be",
            hint="`planner verify MODEL` names what differs; put that back from a copy, then apply the plan",
        ) from None
    if ledger is not None and ledger.current.fingerprint != meant:
        raise LedgerDamaged(
            f"{checkpoint.path} is not what its ledger says, so its earlier patches could not be taken back afterwards",
            hint="`planner verify MODEL` names what differs; --out DIR begins a new history",
        )
    return work


def _bytes_needed(checkpoint: Checkpoint, work: Work, undo: int, *, in_place: bool, low_space: bool) -> int:
    """An upper bound of what the stage takes."""
    changes, copied = work.changes, 0
    shards = {shard.name for shard in checkpoint.shards}
    for name in files_of(checkpoint.path):
        if name in shards and changes.rewrites(checkpoint, name) and not low_space:
            copied += new_size(checkpoint, changes, name)
        elif name in changes.files or not in_place:
            with fsio.storage_errors(checkpoint.path / name):
                copied += (checkpoint.path / name).stat().st_size
    slots = 2 * slot_bytes(checkpoint, changes.tensors) if low_space else 0
    return int((copied + undo) * _HEADROOM) + slots + _RECORDS


def _carry_over(model: Path, stage: Path, ledger: Ledger | None) -> int:
    """Take the records of earlier patches over into the stage, and make a folder for this one; returns its number."""
    for event in ledger.events if ledger else ():
        if event.kind == "applied":
            copy_patch(model, stage, event.patch)
    number = 1 + max((event.patch for event in ledger.events), default=0) if ledger else 1
    fsio.ensure_folder(patch_folder(stage, number))
    return number


_OTHERWISE = {
    (False, False): "choose another place with --out",
    (True, False): "change the weights in their place with --low-space, or choose another place with --out",
    (True, True): "choose another place with --out",
}
