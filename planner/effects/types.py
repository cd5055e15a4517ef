"""What `planner check` finds: effect and exact preview of every modification, and every problem."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.plan import Problem
from planner.records import Record

__all__ = ["CheckReport", "CheckedModification", "CheckedTensor", "Effect", "Moments", "Preview"]

Effect = Literal[
    "void",
    "ignored",
    "invariant",
    "shifts_logits",
    "rescales_logits",
    "loader_dependent",
    "effective",
    "unknown",
]


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
    changed_elements: int
    """How many of them would be stored with other bits."""
    changed_fraction: float
    """The same as a fraction."""
    realised_scale: float | None
    """Σ w·w' / Σ w²: the factor that was really applied after rounding, for a scale; null for a tensor of zeros."""
    relative_change: float | None
    """‖ΔW‖F / ‖W‖F; null where it is infinite."""
    broken_elements: int
    """Elements that are finite now and would no longer be."""
    before: Moments
    """As stored now."""
    after: Moments
    """As it would be stored."""


class CheckedTensor(Preview):
    """What one modification, by itself, would do to one tensor."""

    name: str
    """The tensor."""
    effect: Effect
    """void where no stored bit changes; else unknown, because this version does not analyse the dataflow."""
    why: str
    """Where the verdict comes from."""


class CheckedModification(Record):
    """What one modification, by itself, would do."""

    id: str
    """The modification."""
    tensors: tuple[CheckedTensor, ...]
    """Every tensor it means."""


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
    plan_effect: Effect
    """The plan as a whole: void if its modifications together change no stored bit."""
    modifications: tuple[CheckedModification, ...]
    """Each modification by itself."""
    tensors: tuple[CheckedTensor, ...]
    """Every tensor, with all modifications of it folded together: what `apply` would store."""
