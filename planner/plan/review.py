"""Review: decisions per modification, by a named reviewer, each bound to what was reviewed.

A decision holds the digests of the modification, of the whole plan and of the policy, and the fingerprint; a seal over
these and over its own words closes it. It counts only while all of them still fit. An edit of one modification
therefore re-opens every decision: what a plan does, it does as a whole.

A seal shows edits; anybody can compute one. Who must not be able to forge an approval asks for a signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from planner.errors import PlanNotApproved, UsageError
from planner.plan.digests import modification_digest, plan_digest, policy_digest, seal_of
from planner.plan.policy import Policy
from planner.plan.problems import field_path
from planner.plan.types import Decision, Modification, Plan

__all__ = ["decide", "limits_of", "reopened", "require_decided", "undecided"]

_SHORT = len("blake3:") + 12


def limits_of(plan: Plan, policy: Policy | None = None) -> Policy:
    """`policy` if there is one, else the policy recorded in the plan, else the default one."""
    return policy or plan.policy or Policy()


def decide(
    plan: Plan,
    ids: Iterable[str],
    decision: Literal["approved", "rejected"],
    *,
    reviewer: str,
    comment: str = "",
    policy: Policy | None = None,
    how: Literal["review", "yes", "rule"] = "review",
) -> Plan:
    """The plan with a decision on each of `ids`, taken under `policy` (see `limits_of`), which it then records.

    A signature on earlier decisions is dropped. Without ids the plan stays as it is. Raises `UsageError` for an id
    that the plan does not hold, and for a name or comment that does not fit.
    """
    wanted = list(ids)
    if not wanted:
        return plan
    by_id = {modification.id: modification for modification in plan.modifications}
    limits = limits_of(plan, policy)
    bound = {
        "plan": plan_digest(plan),
        "fingerprint": plan.checkpoint.fingerprint,
        "policy": policy_digest(limits),
        "how": how,
        "decision": decision,
        "reviewer": reviewer,
        "comment": comment,
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    review = dict(plan.review)
    for name in wanted:
        if name not in by_id:
            raise UsageError(
                f"the plan holds no modification {name!r}", hint="it holds " + (", ".join(by_id) or "none at all")
            )
        try:
            taken = Decision.model_validate({**bound, "digest": modification_digest(by_id[name])})
        except ValidationError as error:
            wrong = "; ".join(f"{field_path(item['loc'])}: {item['msg']}" for item in error.errors())
            raise UsageError(f"the decision on {name} cannot be kept: {wrong}", hint="say it in fewer words") from None
        review[name] = taken.model_copy(update={"seal": seal_of(name, taken)})
    in_order = {m.id: review[m.id] for m in plan.modifications if m.id in review}
    return plan.model_copy(update={"review": in_order, "policy": limits, "approval": None})


def undecided(plan: Plan, policy: Policy | None = None) -> tuple[Modification, ...]:
    """The modifications on which there is no decision that still counts, under `policy` (see `limits_of`)."""
    standing = _Standing(plan, limits_of(plan, policy))
    return tuple(m for m in plan.modifications if m.id not in plan.review or standing.reason(m))


def reopened(plan: Plan, policy: Policy | None = None) -> Mapping[str, str]:
    """Why a decision that somebody took counts no more, by the id of the modification."""
    standing = _Standing(plan, limits_of(plan, policy))
    reasons = {m.id: standing.reason(m) for m in plan.modifications if m.id in plan.review}
    return {name: reason for name, reason in reasons.items() if reason}


def require_decided(plan: Plan, policy: Policy | None = None) -> None:
    """Raise `PlanNotApproved`, naming what no longer fits, unless every modification has a decision that counts."""
    limits = limits_of(plan, policy)
    _require_sealed(plan)
    _require_unedited(plan)
    _require_same_policy(plan, limits)
    if unseen := [m.id for m in undecided(plan, limits)]:
        raise PlanNotApproved(
            f"not reviewed: {', '.join(unseen)}",
            hint="run `planner review PLAN --model MODEL`, or approve all yourself with `planner apply --yes`",
        )


class _Standing:
    """What the decisions of one plan are compared with; its digests are computed once."""

    def __init__(self, plan: Plan, limits: Policy) -> None:
        self._plan = plan
        self._digest = plan_digest(plan)
        self._policy = policy_digest(limits)

    def reason(self, modification: Modification) -> str | None:
        """Why the decision on it does not count; None if it does."""
        decision = self._plan.review[modification.id]
        if decision.seal is None:
            return "the decision has no seal"
        if decision.seal != seal_of(modification.id, decision):
            return "the decision was edited"
        if decision.digest != modification_digest(modification):
            return "edited after the review"
        if decision.plan != self._digest:
            return "the plan was edited after the review"
        return None if decision.policy == self._policy else "reviewed under another policy"


def _require_sealed(plan: Plan) -> None:
    if unsealed := [name for name, decision in plan.review.items() if decision.seal is None]:
        raise PlanNotApproved(
            f"not reviewed: the decision on {_all(unsealed)} has no seal",
            hint="it was written by hand, or by an older planner; review again: `planner review PLAN --model MODEL`",
        )
    if altered := [name for name, decision in plan.review.items() if decision.seal != seal_of(name, decision)]:
        raise PlanNotApproved(
            f"the decision on {_all(altered)} was edited after it was taken",
            hint="what a reviewer decided is not changed by hand; decide again: `planner review PLAN --model MODEL`",
        )


def _require_unedited(plan: Plan) -> None:
    """The decisions are as they were taken; is the plan what they were taken on?"""
    now, taken = plan_digest(plan), plan.review
    stale = {name: decision for name, decision in taken.items() if decision.plan != now}
    if not stale:
        return
    fingerprint = plan.checkpoint.fingerprint
    edited = [m.id for m in plan.modifications if m.id in stale and stale[m.id].digest != modification_digest(m)]
    if edited:
        what = f"edited after the review: {_all(edited)}"
    elif others := [decision.fingerprint or "" for decision in stale.values() if decision.fingerprint != fingerprint]:
        what = f"reviewed for the checkpoint {others[0][:_SHORT]}; the plan now names {fingerprint[:_SHORT]}"
    elif len(stale) < len(taken):
        what = f"the plan was edited after the review of {_all(stale)}"
    else:
        what = "edited after the review: no modification that is left, but their number or order, or another field"
    raise PlanNotApproved(
        what,
        hint="review the plan as it is now: `planner review PLAN --model MODEL`; a decision is on the plan as a whole",
    )


def _require_same_policy(plan: Plan, limits: Policy) -> None:
    now = policy_digest(limits)
    others = {decision.policy or "" for decision in plan.review.values()} - {now}
    recorded = policy_digest(plan.policy) if plan.policy else None
    if others:
        then = min(others)
        known = plan.policy if plan.policy and recorded == then else None
        differ = [name for name in Policy.model_fields if known and getattr(known, name) != getattr(limits, name)]
        raise PlanNotApproved(
            f"reviewed under the policy {then[:_SHORT]}; the limits in force are {now[:_SHORT]}"
            + (f", which differ in {', '.join(differ)}" if differ else ""),
            hint=f"give the policy of the review, {then[:_SHORT]}, with --policy FILE, or review again under this one: "
            "`planner review PLAN --model MODEL --policy FILE`",
        )
    if plan.review and recorded != now:
        raise PlanNotApproved(
            "the policy that the plan records is not the one of its review; it was edited",
            hint="review again: `planner review PLAN --model MODEL --policy FILE`",
        )


def _all(names: Iterable[str]) -> str:
    return ", ".join(names)
