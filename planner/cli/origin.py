"""By which modifications a checkpoint was made from another one: as its ledger says, or as a plan file does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.evaluation import Wanted
    from planner.plan import Modification, Plan

__all__ = ["by_ledger", "by_plan"]


def by_plan(plan: Path, fingerprint: str, count: int) -> tuple[Wanted, Plan]:
    """As the plan file says, and the plan; modifications that its reviewer rejected are left out.

    Raises `StalePlan` where the plan is for another checkpoint than the one with that fingerprint.
    """
    from planner.cli.given import plan_at
    from planner.effects import fitted_to
    from planner.errors import StalePlan
    from planner.evaluation import Wanted

    read = plan_at(plan)
    if read.checkpoint.fingerprint != fingerprint:
        raise StalePlan(
            f"the baseline is {fingerprint[:19]}; the plan was made for {read.checkpoint.fingerprint[:19]}",
            hint="give the checkpoint that the plan was made for as --baseline",
        )
    rejected = {name for name, decision in read.review.items() if decision.decision == "rejected"}
    kept = {modification.id for modification in read.modifications} - rejected
    return Wanted(count=count, modifications=_chosen(read, kept), folder=plan.parent, fitted=fitted_to(read)), read


def by_ledger(candidate: Path, before: str, after: str, count: int) -> tuple[Wanted, Plan | None]:
    """As the ledger of the checkpoint in `candidate` says: the patches between two fingerprints; the plan, if one.

    Where it does not say so, the result says why. Raises `LedgerDamaged`, and what reading a plan raises.
    """
    from planner.cli.given import plan_at
    from planner.effects import fitted_to
    from planner.evaluation import Wanted
    from planner.inputs import read_text
    from planner.transaction import RECEIPT, Receipt, patch_folder, read_ledger

    ledger = read_ledger(candidate)
    if ledger is None or ledger.current.fingerprint != after:
        state = "has no ledger" if ledger is None else "is not what its ledger says"
        return Wanted(count=count, unknown=f"the candidate {state}; --plan FILE names the plan it was made by"), None
    folders = [patch_folder(candidate, number) for number in ledger.in_force]
    receipts = [Receipt.model_validate_json(read_text(folder / RECEIPT)) for folder in folders]
    first = next((place for place, receipt in enumerate(receipts) if receipt.fingerprint_before == before), None)
    if first is None:
        unknown = "the baseline is not what the candidate's ledger says that it was made from"
        return Wanted(count=count, unknown=unknown), None
    modifications: list[Modification] = []
    for folder, receipt in zip(folders[first:], receipts[first:], strict=True):
        plan = plan_at(folder / "plan.json")
        modifications += _chosen(plan, set(receipt.modifications))
    wanted = Wanted(count=count, modifications=modifications, folder=folders[-1], fitted=fitted_to(plan))
    return wanted, plan if len(receipts[first:]) == 1 else None


def _chosen(plan: Plan, ids: set[str]) -> list[Modification]:
    return [modification for modification in plan.modifications if modification.id in ids]
