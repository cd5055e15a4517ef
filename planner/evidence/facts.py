"""Facts of an evidence file that a modification may cite, by name."""

from __future__ import annotations

from planner.evidence.types import EvidenceFile, Gradient, TensorSensitivity

__all__ = ["PREFIX", "fact_of", "facts_of"]

PREFIX = "probe."
"""Facts that begin so are looked up in the evidence and not in the profile."""
_GRADIENT = ("raw", "raw_se", "calibrated", "calibrated_se", "curvature", "drift", "step", "gain")


def fact_of(evidence: EvidenceFile, tensor: str, fact: str) -> float | str | None:
    """The value of a fact such as `probe.scale.calibrated`; a string says why there is none.

    There are `probe.scale.…` and `probe.shift.…` with the numbers of a gradient, `probe.by_row`, `probe.by_column`,
    `probe.direction.strength`, and `probe.row.N` and `probe.column.N` for the rows and columns that the file lists.
    """
    found = next((t for t in evidence.tensors if t.name == tensor), None)
    if found is None:
        return f"{tensor!r} was not measured: {evidence.not_measured.get(tensor, 'it is not in the evidence')}"
    facts = facts_of(found)
    if fact not in facts:
        return f"{fact[:60]!r} is not in the evidence; of this tensor it has {', '.join(facts)}"
    return facts[fact]


def facts_of(tensor: TensorSensitivity) -> dict[str, float | None]:
    """Every fact of one tensor, by name."""
    facts: dict[str, float | None] = {}
    for kind, gradient in (("scale", tensor.scale), ("shift", tensor.shift)):
        facts |= {f"{PREFIX}{kind}.{name}": _number(gradient, name) for name in _GRADIENT}
    facts |= {f"{PREFIX}by_row": tensor.by_row, f"{PREFIX}by_column": tensor.by_column}
    if tensor.direction:
        facts[f"{PREFIX}direction.strength"] = tensor.direction.strength
    facts |= {f"{PREFIX}row.{unit.index}": unit.calibrated for unit in tensor.top_rows}
    facts |= {f"{PREFIX}column.{unit.index}": unit.calibrated for unit in tensor.top_columns}
    return facts


def _number(gradient: Gradient, name: str) -> float | None:
    value: float | None = getattr(gradient, name)
    return value
