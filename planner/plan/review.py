"""Review: decisions per modification, by a named reviewer, each bound to the text that was reviewed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from planner.checkpoint import digest_bytes
from planner.errors import PlanNotApproved, UsageError
from planner.plan.problems import field_path
from planner.plan.types import Decision, Modification, Plan

__all__ = ["approved", "decide", "modification_digest", "undecided"]


def modification_digest(modification: Modification) -> str:
    """Digest of everything that a reviewer reads in a modification."""
    return digest_bytes(modification.model_dump_json().encode())


def decide(
    plan: Plan, ids: Iterable[str], decision: Literal["approved", "rejected"], *, reviewer: str, comment: str = ""
) -> Plan:
    """The plan with a decision on each of `ids`.

    Raises `UsageError` for an id that the plan does not hold, and for a name or comment that does not fit.
    """
    by_id = {modification.id: modification for modification in plan.modifications}
    review = dict(plan.review)
    for name in ids:
        if name not in by_id:
            raise UsageError(
                f"the plan holds no modification {name!r}", hint="it holds " + (", ".join(by_id) or "none at all")
            )
        try:
            review[name] = Decision(
                decision=decision,
                reviewer=reviewer,
                at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                comment=comment,
                digest=modification_digest(by_id[name]),
            )
        except ValidationError as error:
            wrong = "; ".join(f"{field_path(item['loc'])}: {item['msg']}" for item in error.errors())
            raise UsageError(f"the decision on {name} cannot be kept: {wrong}", hint="say it in fewer words") from None
    return plan.model_copy(update={"review": {m.id: review[m.id] for m in plan.modifications if m.id in review}})


def undecided(plan: Plan) -> tuple[Modification, ...]:
    """The modifications that nobody decided on, or that were edited after the decision."""
    return tuple(m for m in plan.modifications if m.id not in plan.review or _edited(plan, m))


def approved(plan: Plan) -> tuple[Modification, ...]:
    """The modifications to apply, in the plan's order.

    Raises `PlanNotApproved` if any is undecided or was edited after its approval, or if none is approved.
    """
    if edited := [m.id for m in plan.modifications if m.id in plan.review and _edited(plan, m)]:
        raise PlanNotApproved(
            f"edited after the review: {', '.join(edited)}",
            hint="review them again: `planner review PLAN --model MODEL`",
        )
    if open_ids := [m.id for m in undecided(plan)]:
        raise PlanNotApproved(
            f"not reviewed: {', '.join(open_ids)}",
            hint="run `planner review PLAN --model MODEL`, or approve all yourself with `planner apply --yes`",
        )
    chosen = tuple(m for m in plan.modifications if plan.review[m.id].decision == "approved")
    if not chosen:
        raise PlanNotApproved("no modification of the plan is approved", hint="there is nothing to apply")
    return chosen


def _edited(plan: Plan, modification: Modification) -> bool:
    digest = plan.review[modification.id].digest
    return digest is not None and digest != modification_digest(modification)
