"""Plans as data: what they hold, how they are read and reviewed. Nothing here touches a file."""

from __future__ import annotations

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
from planner.plan.policy import Effect, Policy, policy_as_toml, read_policy
from planner.plan.problems import Problem, field_path
from planner.plan.reading import problems_of, read_plan, write_plan
from planner.plan.review import approved, decide, modification_digest, undecided
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
    "approved",
    "decide",
    "field_path",
    "modification_digest",
    "nearest",
    "new_plan",
    "policy_as_toml",
    "problems_of",
    "read_patch_list",
    "read_plan",
    "read_policy",
    "resolve",
    "undecided",
    "write_plan",
]
