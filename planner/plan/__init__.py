"""Plans as data: what they hold, how they are read and reviewed. Nothing here touches a file."""

from __future__ import annotations

from planner.plan.policy import Policy, read_policy
from planner.plan.problems import Problem, field_path
from planner.plan.reading import problems_of, read_plan, write_plan
from planner.plan.review import approved, decide, modification_digest, undecided
from planner.plan.target import Elements, Target, TargetUnmatched, resolve
from planner.plan.types import (
    PLAN_SCHEMA,
    AnalystRecord,
    CheckpointRef,
    Decision,
    Evidence,
    Modification,
    Plan,
    Usage,
)

__all__ = [
    "PLAN_SCHEMA",
    "AnalystRecord",
    "CheckpointRef",
    "Decision",
    "Elements",
    "Evidence",
    "Modification",
    "Plan",
    "Policy",
    "Problem",
    "Target",
    "TargetUnmatched",
    "Usage",
    "approved",
    "decide",
    "field_path",
    "modification_digest",
    "problems_of",
    "read_plan",
    "read_policy",
    "resolve",
    "undecided",
    "write_plan",
]
