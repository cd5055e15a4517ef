"""Evidence from forward and backward passes: the file, and what can be computed from it without the model."""

from __future__ import annotations

from planner.evidence.analysis import (
    Sides,
    ceilings_of,
    directions_of,
    gauge_of,
    stability_of,
    tensors_of,
    units_of,
)
from planner.evidence.gradients import Gradients
from planner.evidence.layout import Layout, Place
from planner.evidence.measured import Direction, Grouping, Measured, Scores
from planner.evidence.store import arrays_bytes, arrays_path, load_arrays, read_evidence, write_evidence
from planner.evidence.types import (
    ArraysRef,
    Ceiling,
    EvidenceFile,
    Gradient,
    Objective,
    TensorSensitivity,
    TextUsed,
    UnitSensitivity,
)

__all__ = [
    "ArraysRef",
    "Ceiling",
    "Direction",
    "EvidenceFile",
    "Gradient",
    "Gradients",
    "Grouping",
    "Layout",
    "Measured",
    "Objective",
    "Place",
    "Scores",
    "Sides",
    "TensorSensitivity",
    "TextUsed",
    "UnitSensitivity",
    "arrays_bytes",
    "arrays_path",
    "ceilings_of",
    "directions_of",
    "gauge_of",
    "load_arrays",
    "read_evidence",
    "stability_of",
    "tensors_of",
    "units_of",
    "write_evidence",
]
