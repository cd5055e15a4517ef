"""Plans as data: what they hold, how they are read, reviewed and approved.

Nothing here touches a file but the key that an approval is signed with.
"""

from __future__ import annotations

from planner.plan.approval import approval_statement, approved, sign_approval, verify_approval
from planner.plan.digests import modification_digest, plan_digest, policy_digest
from planner.plan.elements import (
    ELEMENTS,
    AllElements,
    ColumnElements,
    Elements,
    HeadElements,
    MagnitudeQuantile,
    RowElements,
    SignedQuantile,
    TokenElements,
    ValueRange,
)
from planner.plan.importing import ImportedList, QuantileOf, new_plan, read_patch_list
from planner.plan.nearest import nearest
from planner.plan.policy import OPERATORS_POLICY, Effect, Policy, policy_as_toml, read_policy
from planner.plan.problems import Problem, field_path
from planner.plan.reading import problems_of, read_plan, write_plan
from planner.plan.review import decide, limits_of, reopened, require_decided, undecided
from planner.plan.target import Target, TargetUnmatched, resolve
from planner.plan.types import (
    PLAN_SCHEMA,
    Agreement,
    AnalystRecord,
    CheckpointRef,
    Decision,
    Evidence,
    EvidenceRef,
    Modification,
    Plan,
    Usage,
)

__all__ = [
    "ELEMENTS",
    "OPERATORS_POLICY",
    "PLAN_SCHEMA",
    "Agreement",
    "AllElements",
    "AnalystRecord",
    "CheckpointRef",
    "ColumnElements",
    "Decision",
    "Effect",
    "Elements",
    "Evidence",
    "EvidenceRef",
    "HeadElements",
    "ImportedList",
    "MagnitudeQuantile",
    "Modification",
    "Plan",
    "Policy",
    "Problem",
    "QuantileOf",
    "RowElements",
    "SignedQuantile",
    "Target",
    "TargetUnmatched",
    "TokenElements",
    "Usage",
    "ValueRange",
    "approval_statement",
    "approved",
    "decide",
    "field_path",
    "limits_of",
    "modification_digest",
    "nearest",
    "new_plan",
    "plan_digest",
    "policy_as_toml",
    "policy_digest",
    "problems_of",
    "read_patch_list",
    "read_plan",
    "read_policy",
    "reopened",
    "require_decided",
    "resolve",
    "sign_approval",
    "undecided",
    "verify_approval",
    "write_plan",
]
