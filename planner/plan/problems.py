"""A problem of a plan: the record that a person reads, a program counts and an analyst is asked to mend."""

from __future__ import annotations

from collections.abc import Sequence

from planner.records import Record

__all__ = ["Problem", "field_path"]


class Problem(Record):
    """One reason to refuse a plan."""

    modification: str | None
    """The id of the modification; null if it is about the plan as a whole."""
    code: str
    """Kind of problem: plan-invalid, unknown-target, outside-policy, void-modification, evidence-mismatch, ..."""
    message: str
    """What is wrong."""
    hint: str
    """What to do about it."""

    def __str__(self) -> str:
        where = f"{self.modification}: " if self.modification else ""
        return f"{where}{self.message} ({self.hint})"


def field_path(location: Sequence[str | int]) -> str:
    """Where in a document, the way a person would say it: modifications[2].operation.factor."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path or "the document"
