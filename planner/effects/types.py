"""What `planner check` finds: effect and exact preview of every modification, and every problem."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.edits import Provenance
from planner.evidence.prediction import Prediction
from planner.plan import Problem
from planner.plan.policy import Effect, Policy
from planner.records import Record

__all__ = ["CheckReport", "CheckedModification", "CheckedTensor", "Effect", "Moments", "Preview", "Source", "Standing"]

Source = Literal["histogram", "read", "new"]
"""Where a preview comes from: the kept histogram (no weight was read), the tensor's bytes, a tensor that is added."""


class Moments(Record):
    """A tensor in a few numbers, over its finite elements."""

    mean: float | None = None
    """Arithmetic mean."""
    std: float | None = None
    """Population standard deviation."""
    rms: float | None = None
    """Root of the mean square."""
    min: float | None = None
    """Smallest element."""
    max: float | None = None
    """Largest element."""
    abs_max: float | None = None
    """Largest magnitude."""
    nonfinite: int = 0
    """Elements that are NaN or infinite."""


class Preview(Record):
    """One tensor before and after, as it would be stored."""

    elements: int
    """How many numbers it holds."""
    source: Source
    """Where the numbers below come from; they are exact in every case."""
    changed_elements: int
    """How many of them would be stored with other bits."""
    changed_fraction: float
    """The same as a fraction."""
    realised_scale: float | None
    """Σ w·w' / Σ w²: the factor that was really applied after rounding, for a scale; null for a tensor of zeros."""
    scale_spread: float | None
    """√(Σ (w' - s·w)² / Σ w²), s being the realised scale: what rounding, or what is no scale, adds to it."""
    relative_change: float | None
    """‖ΔW‖F / ‖W‖F; null where it is infinite."""
    broken_elements: int
    """Elements that are finite now and would no longer be."""
    infinite_elements: int
    """Those of them that would become infinite."""
    zeros_made: int
    """Elements that are not zero now and would be."""
    before: Moments
    """As stored now."""
    after: Moments
    """As it would be stored."""


class CheckedTensor(Preview):
    """What one modification, by itself, would do to one tensor."""

    name: str
    """The tensor."""
    effect: Effect
    """What the change of this tensor does to the model; that of the whole modification where its tensors undo each
    other."""
    why: str
    """The proof in a sentence, or why there is none."""


class CheckedModification(Record):
    """What one modification, by itself, would do."""

    id: str
    """The modification."""
    effect: Effect
    """What all of its changes do together."""
    why: str
    """The proof in a sentence, or why there is none."""
    tensors: tuple[CheckedTensor, ...]
    """Every tensor it changes."""
    notes: tuple[str, ...] = ()
    """What its words were found to mean: which tokens, how many elements, which keys of config.json."""
    arrays: tuple[Provenance, ...] = ()
    """The arrays it reads, and what their files say of themselves."""
    grounded: bool = False
    """Whether it cites at least one measured fact; a cited value that is not what was measured is a problem."""


class Standing(Record):
    """What is known of the model that the effects were judged for."""

    family: str | None
    """The model type."""
    known: bool
    """Whether its dataflow is known; without it every change of stored bits is `unknown`."""
    reason: str = ""
    """Why it is not known."""


class CheckReport(Record):
    """Everything that `planner check` finds."""

    schema_: Literal["planner/check@1"] = Field(default="planner/check@1", alias="schema")
    """Kind and version of this file."""
    plan: str
    """The id of the plan."""
    fingerprint: str
    """The checkpoint it was checked against."""
    accepted: bool
    """Whether there is no problem."""
    problems: tuple[Problem, ...]
    """Every reason to refuse the plan."""
    warnings: tuple[str, ...] = ()
    """What a reviewer should know and the policy allows."""
    model: Standing
    """The model, as far as effects go."""
    policy: Policy
    """The limits it was checked against."""
    plan_effect: Effect
    """The plan as a whole: its modifications may undo one another."""
    plan_why: str
    """The proof in a sentence, or why there is none."""
    total_change: float | None
    """‖ΔW‖ / ‖W‖ over all tensors of the checkpoint; null where it is infinite."""
    prediction: Prediction | None = None
    """What the evidence predicts of the loss and of the drift; null without evidence."""
    modifications: tuple[CheckedModification, ...]
    """Each modification by itself."""
    tensors: tuple[CheckedTensor, ...]
    """Every tensor, with all modifications of it folded together: what `apply` would store."""
