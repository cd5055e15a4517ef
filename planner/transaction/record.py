"""The record of a patch: plan, receipt and ledger, written into the stage with everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from planner import __version__, fsio
from planner.checkpoint import digest_bytes, digest_file
from planner.plain_text import plain
from planner.plan import Modification, Plan, write_plan
from planner.transaction.ledger import (
    PLAN,
    RECEIPT,
    encode_ledger,
    ledger_path,
    patch_folder,
    restore_reserve,
    write_record,
)
from planner.transaction.recorded import carried_over, refuse_damaged
from planner.transaction.seal import sealed
from planner.transaction.types import Event, Ledger, Parent, Receipt, State
from planner.transaction.undo.data import UndoArrays
from planner.transaction.undo.way_back import read_receipt
from planner.transaction.work import Work
from planner.transaction.writing import Written

__all__ = ["Approval", "Recording", "cumulative_changes", "now"]


_FOR_FOLDERS = 2**18


@dataclass(frozen=True)
class Approval:
    """Under what the plan was approved."""

    policy_digest: str
    signed_by: str | None


@dataclass(frozen=True)
class Recording:
    """What is known of a patch before its bytes are written."""

    plan: Plan
    modifications: Sequence[Modification]
    work: Work
    number: int
    by: str
    path: Path
    in_place: bool
    approval: Approval

    def write(
        self,
        stage: Path,
        ledger: Ledger | None,
        written: Written,
        after: State,
        arrays: UndoArrays,
        relative: Mapping[str, float | None],
        distances: Mapping[str, float | None],
        inherited: Mapping[str, float],
        *,
        slot: int = 0,
    ) -> Receipt:
        """Write plan, receipt and ledger into the stage. With a `slot`, room for going back in place is reserved.

        `relative` and `distances` are how far each tensor moved, now and from its original; `inherited` begins a
        history where there is no ledger. Raises `LedgerDamaged` where what was found is not what the ledger says, and
        a `StorageError`.
        """
        if ledger:
            refuse_damaged(self.work.checkpoint.path, ledger, written.before)
        folder = patch_folder(stage, self.number)
        content = write_plan(self.plan)
        receipt = self._receipt(written, after, arrays, relative, distances, digest_bytes(content))
        write_record(folder / PLAN, content)
        write_record(folder / RECEIPT, receipt.model_dump_json(indent=2).encode() + b"\n")
        before = written.before
        parent = None
        if not self.in_place:
            parent = Parent(name=self.work.checkpoint.name, fingerprint=before.fingerprint)
        base = ledger or Ledger(
            serial=0, parent=parent, inherited=dict(inherited), original=before, current=before, in_force=(), events=()
        )
        updated = base.model_copy(
            update={
                "serial": base.serial + 1,
                "current": carried_over(ledger, before, after, _rewritten(receipt)) if ledger else after,
                "in_force": (*base.in_force, self.number),
                "events": (*base.events, self._event(receipt, folder, base)),
            }
        )
        size = slot + 4 * len(encode_ledger(updated)) + _FOR_FOLDERS if slot else 0
        updated = sealed(updated.model_copy(update={"reserve": size}), follows=ledger)
        write_record(ledger_path(stage), encode_ledger(updated))
        restore_reserve(stage)
        return receipt

    def _receipt(
        self,
        written: Written,
        after: State,
        arrays: UndoArrays,
        relative: Mapping[str, float | None],
        distances: Mapping[str, float | None],
        plan_digest: str,
    ) -> Receipt:
        review = self.plan.review
        tensors = tuple(
            tensor.model_copy(
                update={
                    "undo": arrays.frames.get(tensor.name),
                    "relative_change": relative.get(tensor.name),
                    "cumulative_change": distances.get(tensor.name),
                }
            )
            for tensor in self.work.receipts(written)
        )
        return Receipt(
            patch=self.number,
            plan=self.plan.id,
            plan_digest=plan_digest,
            at=now(),
            by=self.by,
            planner_version=__version__,
            path=plain(str(self.path)),  # a folder's name need not be text
            in_place=self.in_place,
            fingerprint_before=written.before.fingerprint,
            fingerprint_after=after.fingerprint,
            modifications=tuple(modification.id for modification in self.modifications),
            rejected=tuple(name for name, decision in review.items() if decision.decision == "rejected"),
            approvals={m.id: f"{review[m.id].reviewer} ({review[m.id].how})" for m in self.modifications},
            signed_by=self.approval.signed_by,
            policy_digest=self.approval.policy_digest,
            tensors=tensors,
            files=self.work.file_receipts(arrays),
            undo_bytes=arrays.nbytes,
            changed_bytes=sum(self.work.checkpoint.tensors[t.name].nbytes for t in tensors if t.before is not None),
        )

    def _event(self, receipt: Receipt, folder: Path, base: Ledger) -> Event:
        approvals = [self.plan.review[m.id] for m in self.modifications]
        changes = {t.name: t.cumulative_change for t in receipt.tensors if t.cumulative_change is not None}
        known = cumulative_changes(folder.parent.parent.parent, base) | changes
        return Event(
            kind="applied",
            patch=self.number,
            at=receipt.at,
            by=self.by,
            fingerprint=receipt.fingerprint_after,
            plan=self.plan.id,
            plan_digest=receipt.plan_digest,
            goal=self.plan.goal,
            modifications=len(self.modifications),
            changed_tensors=len(receipt.tensors),
            changed_elements=sum(tensor.changed_elements for tensor in receipt.tensors),
            largest_change=max(known.values(), default=0.0),
            approved_by=tuple(dict.fromkeys(decision.reviewer for decision in approvals)),
            approved_by_flag=any(decision.how == "yes" for decision in approvals),
            signed_by=self.approval.signed_by,
            records=_digests(folder),
        )


def _rewritten(receipt: Receipt) -> set[str]:
    """The files that a patch wrote."""
    return {tensor.shard for tensor in receipt.tensors} | {file.name for file in receipt.files}


def _digests(folder: Path) -> dict[str, str]:
    with fsio.storage_errors(folder):
        return {path.name: digest_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def cumulative_changes(folder: Path, ledger: Ledger) -> dict[str, float]:
    """‖W - W₀‖F/‖W₀‖F of every tensor that is not as it was at first, as the receipts in `folder` have it.

    Of a history that began with a checkpoint that was patched already, these are upper bounds. Raises `LedgerDamaged`.
    """
    changes = dict(ledger.inherited)
    for number in ledger.in_force:
        for tensor in read_receipt(patch_folder(folder, number)).tensors:
            known = tensor.cumulative_change if tensor.cumulative_change is not None else tensor.relative_change
            if known is not None:
                changes[tensor.name] = known
    return changes


def now() -> str:
    """The time, UTC, as it stands in ledgers."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
