"""From a plan's words to what is done to each tensor."""

from __future__ import annotations

from planner.edits.arrays import Provenance, read_array
from planner.edits.lora import Adapter, open_adapter
from planner.edits.realised import new_values, stored_values
from planner.edits.resolving import combined, resolved
from planner.edits.surroundings import Surroundings, surroundings_of
from planner.edits.types import Added, ModificationEdits, PlanEdits, TensorEdit, Unresolved

__all__ = [
    "Adapter",
    "Added",
    "ModificationEdits",
    "PlanEdits",
    "Provenance",
    "Surroundings",
    "TensorEdit",
    "Unresolved",
    "combined",
    "new_values",
    "open_adapter",
    "read_array",
    "resolved",
    "stored_values",
    "surroundings_of",
]
