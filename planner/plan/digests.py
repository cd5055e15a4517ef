"""Digests of what a decision binds: the plan, its modifications, the policy, and the decision itself.

Each is the BLAKE3 of canonical JSON: every field with its value, defaults included, keys in order, no space.
"""

from __future__ import annotations

import json
from typing import Any

from planner.checkpoint import digest_bytes
from planner.plan.policy import Policy
from planner.plan.types import Decision, Modification, Plan

__all__ = ["canonical_json", "modification_digest", "plan_digest", "policy_digest", "seal_of"]

_OF_THE_REVIEW = {"review", "policy", "approval"}


def canonical_json(value: Any) -> bytes:
    """One text for one value: UTF-8, sorted keys, shortest digits that give the same number."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def modification_digest(modification: Modification) -> str:
    """Digest of everything that a reviewer reads in a modification."""
    return digest_bytes(modification.model_dump_json().encode())


def plan_digest(plan: Plan) -> str:
    """Digest of everything in the plan that was there before the review: all but policy, decisions and signature."""
    return digest_bytes(canonical_json(plan.model_dump(mode="json", exclude=_OF_THE_REVIEW)))


def policy_digest(policy: Policy) -> str:
    """Digest of every limit; a default that is spelled out makes no difference."""
    return digest_bytes(canonical_json(policy.model_dump(mode="json")))


def seal_of(name: str, decision: Decision) -> str:
    """Digest of the decision on the modification called `name`, with all that it binds."""
    return digest_bytes(canonical_json({"modification": name} | decision.model_dump(mode="json", exclude={"seal"})))
