"""How a run ended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.records import Record

__all__ = ["Outcome"]


class Outcome(Record):
    """The last file of a run; a run folder without it is unfinished."""

    schema_: Literal["planner/outcome@1"] = Field(default="planner/outcome@1", alias="schema")
    """Kind and version of this file."""
    decision: Literal["kept", "reverted", "nothing proposed", "nothing approved"]
    """kept: every gate passed. reverted: a gate refused, and the candidate's bytes were restored."""
    why: str
    """The reason, in a sentence."""
    exit_status: int
    """Of the command."""
    model: str
    """The checkpoint that the run started from; unchanged."""
    fingerprint: str
    """Its fingerprint."""
    candidate: str | None
    """Where the patched checkpoint is, or was before it was reverted."""
    candidate_fingerprint: str | None
    """The fingerprint of what is there now."""
    modifications: int
    """How many modifications were applied."""
    files: tuple[str, ...]
    """The files of the run, in the order of the way of the data."""
