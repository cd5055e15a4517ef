"""What every analyst is given, and the one method it has."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from planner.architecture import ModelMap
from planner.checkpoint import Checkpoint
from planner.effects import CheckReport, Known
from planner.plan import AnalystRecord, CheckpointRef, Modification, Plan, Policy
from planner.profile import Histograms, Profile

__all__ = ["Analyst", "Brief", "drafted"]


@dataclass(frozen=True)
class Brief:
    """What an analyst knows."""

    goal: str
    profile: Profile
    policy: Policy
    check: Callable[[Plan], CheckReport]
    """Checks a draft against the checkpoint, the policy and the evidence."""
    checkpoint: Checkpoint
    """The checkpoint that the profile is of."""
    model: ModelMap
    """Its map."""
    histograms: Histograms | None = None
    """What is kept with the profile."""
    evidence: Known | None = None
    """What was measured, where anything was."""
    evidence_file: str | None = None
    """The name of its file, which lies beside the plan."""


class Analyst(Protocol):
    """Anything that can write a plan."""

    def propose(self, brief: Brief) -> Plan:
        """A plan that `brief.check` accepts; it may be empty, and its note then says why. Raises an `AnalystFailed`."""
        ...


def drafted(brief: Brief, analyst: AnalystRecord, modifications: Sequence[Modification]) -> Plan:
    """A plan for the checkpoint of `brief`, with a new id."""
    now = datetime.now(UTC)
    return Plan(
        id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        goal=brief.goal,
        checkpoint=CheckpointRef(name=brief.profile.name, fingerprint=brief.profile.fingerprint),
        analyst=analyst,
        modifications=tuple(modifications),
    )
