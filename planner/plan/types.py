"""Plan: an ordered list of modifications, with goal, provenance and the fingerprint it is bound to."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from planner.operations import AnyOperation
from planner.plan.policy import Policy
from planner.plan.target import Target
from planner.records import Record
from planner.signing import Signature

__all__ = [
    "PLAN_SCHEMA",
    "Agreement",
    "AnalystRecord",
    "CheckpointRef",
    "Decision",
    "Evidence",
    "EvidenceRef",
    "Modification",
    "Plan",
    "Usage",
]

PLAN_SCHEMA = "planner/plan@1"
Digest = Annotated[str, Field(pattern=r"^blake3:[0-9a-f]{64}$")]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class CheckpointRef(Record):
    """Which checkpoint."""

    name: str
    """What it is called; for people only."""
    fingerprint: str = Field(pattern=r"^blake3:[0-9a-f]{64}$")
    """Digest of its weights and configuration; this decides."""


class Usage(Record):
    """What the analyst's model used, as its provider counted."""

    input_tokens: int = Field(default=0, ge=0)
    """Tokens sent."""
    output_tokens: int = Field(default=0, ge=0)
    """Tokens received."""
    cost_usd: float | None = Field(default=None, ge=0)
    """Cost in US dollars; null where the price is not known."""


class AnalystRecord(Record):
    """Who wrote the plan."""

    kind: str = Field(max_length=40)
    """rules, llm, random for the control, `imported` for a list made elsewhere, or `human` for one written by hand."""
    model: str | None = Field(default=None, max_length=200)
    """The language model, as its provider names it."""
    asked_for: str | None = Field(default=None, max_length=200)
    """The language model, as the user named it."""
    prompt_sha256: str | None = None
    """Digest of the prompt templates it was asked with."""
    requests: int = Field(default=0, ge=0)
    """How many answers were asked for."""
    usage: Usage = Usage()
    """Tokens and cost."""
    temperature: float | None = None
    """Sampling temperature that was asked for; null where none was sent."""
    seed: int | None = None
    """Sampling seed, or the seed of a random plan; null where there is none."""
    tool_calls: int = Field(default=0, ge=0)
    """How many tools it called before it answered."""
    rounds: int = Field(default=0, ge=0)
    """How many answers were judged until one was taken."""
    first_answer_valid: bool | None = None
    """Whether the first answer was taken as it was; null for analysts that do not answer."""
    transcripts: tuple[str, ...] = ()
    """Files beside the plan that hold everything that was sent and answered."""


class EvidenceRef(Record):
    """The evidence file that a plan rests on."""

    file: str = Field(pattern=r"^[^/\\\x00-\x1f]{1,255}$")
    """Its name; it is looked for beside the plan."""
    id: str = Field(pattern=r"^blake3:[0-9a-f]{64}$")
    """The id it says it has."""


class Evidence(Record):
    """One cited fact: a statistic of the profile, or a measurement, and the value that the analyst read there."""

    tensor: str = Field(max_length=512)
    """Name of the tensor."""
    fact: str = Field(max_length=64)
    """Which statistic: std, kurtosis, quantiles.0.99, outliers.6, ...; `probe.scale.calibrated`, `probe.row.33`,
    `probe.neuron.7` of a tensor's layer and the like are looked up in the evidence that the plan rests on."""
    value: float | None
    """Its value; null where there is none."""


class Modification(Record):
    """One target and one operation, with the reasons for it."""

    id: Identifier
    """Unique in the plan."""
    target: Target
    """Which tensors."""
    operation: AnyOperation
    """What to do to them."""
    reasoning: str = Field(min_length=1, max_length=2048)
    """Why."""
    confidence: float = Field(ge=0, le=1)
    """How sure the analyst is that it helps, from 0 to 1."""
    expected_impact: str = Field(min_length=1, max_length=1024)
    """What should change, and how that would show."""
    evidence: tuple[Evidence, ...] = ()
    """The measured facts it rests on; each is compared with the profile or the evidence."""


class Agreement(Record):
    """How many of several analysts proposed a modification."""

    of: int = Field(ge=1)
    """How many plans were merged."""
    by: tuple[str, ...]
    """Whose plans hold it."""
    values: tuple[str, ...]
    """What each of them said."""


class Decision(Record):
    """What a reviewer decided about one modification."""

    decision: Literal["approved", "rejected"]
    """The decision."""
    reviewer: str = Field(min_length=1, max_length=200)
    """Who decided."""
    at: str
    """When, UTC."""
    comment: str = Field(default="", max_length=2048)
    """Why."""
    digest: Digest | None = None
    """Digest of the modification as it was reviewed."""
    plan: Digest | None = None
    """Digest of the whole plan as it was reviewed: everything in it but policy, decisions and signature."""
    fingerprint: Digest | None = None
    """The checkpoint that the plan was for."""
    policy: Digest | None = None
    """Digest of the policy that was in force."""
    how: Literal["review", "yes", "rule"] = "review"
    """By a person who was shown it, by `apply --yes`, or by the stated rule of an unattended run."""
    seal: Digest | None = None
    """Digest of all of the above and of the id of the modification. A decision that lacks it, or does not fit it, was
    written or edited by hand, and approves nothing."""


class Plan(Record):
    """A plan. It is bound to one fingerprint and refused for any other checkpoint."""

    schema_: Literal["planner/plan@1"] = Field(default="planner/plan@1", alias="schema")
    """Kind and version of this file."""
    id: Identifier
    """Unique name of the plan."""
    created: str
    """When it was written, UTC."""
    goal: str = Field(max_length=2048)
    """What the user wants."""
    checkpoint: CheckpointRef
    """The checkpoint it was made for."""
    analyst: AnalystRecord
    """Who wrote it."""
    evidence: EvidenceRef | None = None
    """The measurements that its modifications cite; null where they cite the profile alone."""
    note: str = Field(default="", max_length=2048)
    """What the analyst says about the plan as a whole."""
    modifications: tuple[Modification, ...]
    """What to do, in order."""
    ungrounded: tuple[Identifier, ...] = ()
    """Modifications that cite no measured fact, as it was found when the plan was written."""
    agreement: dict[Identifier, Agreement] = {}
    """For a plan merged from several: who proposed each modification."""
    disagreements: tuple[str, ...] = ()
    """For a merged plan: what its analysts could not agree on, a sentence each."""
    policy: Policy | None = None
    """The limits that it was reviewed under, or is to be; null where nobody gave any yet."""
    review: dict[str, Decision] = {}
    """Decisions by the id of the modification."""
    approval: Signature | None = None
    """Signature over the plan's digest, the fingerprint, the policy's digest and every decision; null where nobody
    signed. The next decision takes it away."""

    @field_validator("modifications")
    @classmethod
    def _ids_are_unique(cls, modifications: tuple[Modification, ...]) -> tuple[Modification, ...]:
        twice = [name for name, count in Counter(m.id for m in modifications).items() if count > 1]
        if twice:
            raise ValueError(f"more than one modification is called {', '.join(twice)}")
        return modifications

    @model_validator(mode="after")
    def _review_is_of_this_plan(self) -> Self:
        held = {modification.id for modification in self.modifications}
        for what, named in (("review", self.review), ("agreement", self.agreement), ("ungrounded", self.ungrounded)):
            if unknown := set(named) - held:
                raise ValueError(f"`{what}` speaks of {', '.join(sorted(unknown))}, which the plan does not hold")
        return self
