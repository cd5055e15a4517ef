"""Approval: what of a plan may be applied, and the signature that vouches for it."""

from __future__ import annotations

from pathlib import Path

from planner.errors import PlanNotApproved, SignatureRefused
from planner.plan.digests import canonical_json, plan_digest, policy_digest
from planner.plan.policy import Policy
from planner.plan.review import limits_of, require_decided
from planner.plan.types import Modification, Plan
from planner.signing import Signature, consistent, sign, ssh_keygen_found, verify

__all__ = [
    "APPROVAL_NAMESPACE",
    "APPROVAL_SCHEMA",
    "approval_statement",
    "approved",
    "sign_approval",
    "verify_approval",
]

APPROVAL_SCHEMA = "planner/approval@1"
APPROVAL_NAMESPACE = "planner/approval"


def approved(
    plan: Plan, policy: Policy | None = None, *, approval_key: bytes | None = None
) -> tuple[Modification, ...]:
    """The modifications to apply under `policy` (see `limits_of`), in the plan's order.

    `approval_key` is the shared key, where the approval was signed with one.

    Raises `PlanNotApproved` if the plan, its fingerprint, the policy or a decision is not what it was at the review,
    if a modification is undecided, or if none is approved; `SignatureRefused` as `verify_approval` does.
    """
    limits = limits_of(plan, policy)
    require_decided(plan, limits)
    chosen = tuple(m for m in plan.modifications if plan.review[m.id].decision == "approved")
    if not chosen:
        raise PlanNotApproved("no modification of the plan is approved", hint="there is nothing to apply")
    verify_approval(plan, limits, approval_key=approval_key)
    return chosen


def approval_statement(plan: Plan, policy: Policy | None = None) -> bytes:
    """What a signature of the approval is over: canonical JSON of digests, fingerprint, reviewers, sealed decisions."""
    return canonical_json(
        {
            "schema": APPROVAL_SCHEMA,
            "plan": plan_digest(plan),
            "fingerprint": plan.checkpoint.fingerprint,
            "policy": policy_digest(limits_of(plan, policy)),
            "decisions": [
                {"modification": name, "decision": decision.decision, "how": decision.how, "seal": decision.seal}
                for name, decision in sorted(plan.review.items())
            ],
            "reviewers": sorted({decision.reviewer for decision in plan.review.values()}),
        }
    )


def sign_approval(plan: Plan, key: Path, policy: Policy | None = None) -> Plan:
    """The plan with a signature over its approval by the key in that file (see `planner.signing.sign`).

    Raises `PlanNotApproved` unless everything is decided under `policy` (see `limits_of`), and `SigningKeyUnusable`.
    """
    require_decided(plan, policy)
    signature = sign(approval_statement(plan, policy), key, namespace=APPROVAL_NAMESPACE)
    return plan.model_copy(update={"approval": signature})


def verify_approval(plan: Plan, policy: Policy | None = None, *, approval_key: bytes | None = None) -> str | None:
    """Who signed the approval, so far as that can be told; None where it is not signed.

    A signature that is there is verified wherever it can be, whether or not the policy asks for one. It cannot where it
    is by a shared key that was not given, where the policy names no signer, or without ssh-keygen; the policy that asks
    for a signature then refuses. Raises `SignatureRefused`, and `SigningKeyUnusable` where ssh-keygen fails.
    """
    limits = limits_of(plan, policy)
    signature = plan.approval
    if signature is None:
        if limits.signed_approval:
            raise SignatureRefused(
                "the policy asks for a signed approval, and this one is not signed",
                hint="sign it: `planner review PLAN --model MODEL --sign KEY`",
            )
        return None
    statement = approval_statement(plan, limits)
    if not limits.signed_approval and not _verifiable(signature, approval_key):
        return f"{signature.signer} (not verified)"
    if not limits.signed_approval and signature.kind == "ssh" and not limits.allowed_signers:
        found = consistent(statement, signature, namespace=APPROVAL_NAMESPACE)
        return f"{found} (whose key that is, the policy does not say)"
    if signature.kind != "ssh" and approval_key is None:
        raise SignatureRefused(
            f"the approval is signed by the shared key {signature.signer}, and no key was given to verify it with",
            hint="give its file: planner apply ... --approval-key FILE",
        )
    return verify(
        statement,
        signature,
        namespace=APPROVAL_NAMESPACE,
        allowed_signers=limits.allowed_signers,
        hmac_key=approval_key,
    )


def _verifiable(signature: Signature, approval_key: bytes | None) -> bool:
    return ssh_keygen_found() if signature.kind == "ssh" else approval_key is not None
