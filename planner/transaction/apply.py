"""Apply a plan: stage a complete new checkpoint, prove it, and give it its name in one step."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from planner import __version__, fsio
from planner.checkpoint import Checkpoint, digest_bytes, open_checkpoint
from planner.edits import surroundings_of
from planner.effects import CheckReport, check
from planner.errors import (
    LedgerDamaged,
    OutputExists,
    PlanRefused,
    StalePlan,
    UsageError,
    VoidModification,
)
from planner.plan import Modification, Plan, Policy, approved, write_plan
from planner.profile import Profile, histograms_of, profile_of
from planner.transaction.edits import edits_of
from planner.transaction.history import copy_patch
from planner.transaction.kept_arrays import keep_arrays
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
from planner.transaction.proof import Undone, proven
from planner.transaction.stage import exclusive, publish, refuse_unsafe, staged, swap_in
from planner.transaction.state import files_of
from planner.transaction.types import Event, Ledger, Parent, Receipt, State
from planner.transaction.undo import UndoArrays, UndoData, UndoWriter
from planner.transaction.work import Work
from planner.transaction.writing import Written, fill_stage

__all__ = ["apply_plan"]

_HEADROOM = 1.01  # folders, ledger and receipts beside the weights


def apply_plan(
    plan: Plan,
    model: Path,
    *,
    out: Path | None,
    policy: Policy,
    by: str,
    folder: Path | None = None,
    allow_void: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Apply the approved modifications of `plan` to the checkpoint in `model`, as one transaction.

    `folder` is where relative paths in the plan begin; the current folder by default.

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
        profile = _profile(plan, checkpoint, told)
        if ledger and ledger.current.fingerprint != profile.fingerprint:
            raise LedgerDamaged(
                f"{model} is not what its ledger says, so its earlier patches could not be taken back afterwards",
                hint="`planner verify MODEL` names what differs; --out DIR begins a new history",
            )
        chosen = plan.model_copy(update={"modifications": modifications, "review": {}})
        folder = folder or Path()
        histograms = histograms_of(profile)
        report = check(chosen, checkpoint, profile, policy, folder=folder, allow_void=allow_void, histograms=histograms)
        _refuse(report)
        around = surroundings_of(checkpoint, folder, profile=profile, histograms=histograms)
        work = Work(checkpoint, edits_of(modifications, around), report)
        fsio.require_space(final.parent, _bytes_needed(checkpoint, work, in_place=out is None))
        with staged(final, like=model) as stage:
            number = _carry_over(checkpoint.path, stage, ledger)
            undo = UndoWriter(patch_folder(stage, number), checkpoint, work.codings)
            written = fill_stage(
                checkpoint,
                stage,
                work.changes,
                share=out is None,
                keep_residual=undo.keep_residual,
                progress=told.step("writing"),
            )
            if written.before.fingerprint != plan.checkpoint.fingerprint:
                raise _stale(model, written.before.fingerprint, plan)
            arrays = undo.finish(work.coded(written), work.originals(written), work.replaced)
            undone = Undone(
                UndoData(patch_folder(stage, number)), work.originals(written), arrays.residuals, work.codings
            )
            after = proven(checkpoint, stage, written, undone=undone, progress=told.step("verifying"))
            keep_arrays(report, folder, patch_folder(stage, number))
            receipt = _record(plan, modifications, work, stage, ledger, number, written, after, arrays, by=by, out=out)
            (swap_in if out is None else publish)(stage, final)
    return receipt


def _profile(plan: Plan, checkpoint: Checkpoint, told: Steps) -> Profile:
    """The profile of the checkpoint that the plan is for. Raises `StalePlan` if this is another one.

    A kept profile is found by the names and times of the files alone; what the weights really are is known when they
    have been read, before the commit.
    """
    # apply writes nothing but what it was asked to
    profile = profile_of(checkpoint, keep=False, progress=told.step("hashing"))
    if profile.fingerprint != plan.checkpoint.fingerprint:  # it may be of other bytes; the disk decides
        profile = profile_of(checkpoint, force=True, keep=False, progress=told.step("hashing"))
    if profile.fingerprint != plan.checkpoint.fingerprint:
        raise _stale(checkpoint.path, profile.fingerprint, plan)
    return profile


def _stale(model: Path, found: str, plan: Plan) -> StalePlan:
    return StalePlan(
        f"{model} is {found[:19]}; the plan was made for {plan.checkpoint.fingerprint[:19]}",
        hint="propose a plan for the checkpoint as it is now: `planner propose`",
    )


def _refuse_unusable(out: Path | None, model: Path) -> None:
    if out is None:
        return
    if model.resolve() in out.resolve().parents:
        raise UsageError(f"{out} lies inside the model", hint="choose a folder outside of it with --out")
    with fsio.storage_errors(out):
        if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise OutputExists(f"{out} exists and is not empty", hint="choose a new folder with --out, or remove it")
    fsio.require_folder_of(out)


def _refuse(report: CheckReport) -> None:
    """Raise `PlanRefused`, or `VoidModification`, if the check found a problem."""
    if report.problems:
        only_void = all(problem.code == "void-modification" for problem in report.problems)
        refused = VoidModification if only_void else PlanRefused
        count = len(report.problems)
        raise refused(
            f"the plan has {count} problem{'s' if count > 1 else ''}",
            hint="see them all with their previews: `planner check PLAN --model MODEL`",
            problems=tuple(str(problem) for problem in report.problems),
        )


def _bytes_needed(checkpoint: Checkpoint, work: Work, *, in_place: bool) -> int:
    """An upper bound: a coded tensor takes far less than its bytes, but how much is known only afterwards."""
    changes = work.changes
    rewritten = {checkpoint.tensors[name].shard for name in changes.tensors} | set(changes.added)
    copied = 0
    for name in files_of(checkpoint.path):
        if not in_place or name in rewritten or name in changes.files:
            with fsio.storage_errors(checkpoint.path / name):
                copied += (checkpoint.path / name).stat().st_size
    copied += sum(added.nbytes for those in changes.added.values() for added in those)
    undo = sum(checkpoint.tensors[name].nbytes for name in changes.tensors)
    return int((copied + undo) * _HEADROOM) + 2**20


def _carry_over(model: Path, stage: Path, ledger: Ledger | None) -> int:
    """Take the records of earlier patches over into the stage, and make a folder for this one; returns its number."""
    for event in ledger.events if ledger else ():
        if event.kind == "applied":
            copy_patch(model, stage, event.patch)
    number = 1 + max((event.patch for event in ledger.events), default=0) if ledger else 1
    fsio.ensure_folder(patch_folder(stage, number))
    return number


def _record(
    plan: Plan,
    modifications: Sequence[Modification],
    work: Work,
    stage: Path,
    ledger: Ledger | None,
    number: int,
    written: Written,
    after: State,
    arrays: UndoArrays,
    *,
    by: str,
    out: Path | None,
) -> Receipt:
    """Write plan, receipt and ledger into the stage."""
    checkpoint, before, folder = work.checkpoint, written.before, patch_folder(stage, number)
    content = write_plan(plan)
    tensors = work.receipts(written, arrays)
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
        tensors=tensors,
        files=work.file_receipts(arrays),
        undo_bytes=arrays.nbytes,
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
        changed_tensors=len(tensors),
        changed_elements=sum(tensor.changed_elements for tensor in tensors),
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
