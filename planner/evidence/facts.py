"""Facts of an evidence file that a modification may cite, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from planner.evidence.gradients import units_alone
from planner.evidence.measured import Measured
from planner.evidence.types import EvidenceFile, Gradient, TensorSensitivity, UnitSensitivity

__all__ = ["PREFIX", "fact_of", "facts_of", "unit_facts"]

PREFIX = "probe."
"""Facts that begin so are looked up in the evidence and not in the profile."""
_GRADIENT = ("raw", "raw_se", "calibrated", "calibrated_se", "curvature", "drift", "step", "gain")
_ROW_OR_COLUMN = re.compile(r"probe\.(row|column)\.(0|[1-9][0-9]{0,11})")
_NEAREST = 5
_LONGEST = 60


def fact_of(evidence: EvidenceFile, tensor: str, fact: str, measured: Measured | None = None) -> float | str | None:
    """The value of a fact such as `probe.scale.calibrated`; a string says why there is none.

    There are `probe.scale.…` and `probe.shift.…` with the numbers of a gradient, `probe.by_row`, `probe.by_column`,
    `probe.direction.strength`, and with the calibrated gradient as their value:

    - `probe.row.N` and `probe.column.N`: every row and column of a tensor that has several, where the arrays are given;
      those that the file lists, where they are not.
    - `probe.head.N` and `probe.neuron.N` (`probe.neuron.E.N` for expert E): the heads and neurons that the file lists,
      as facts of any tensor of their layer.
    """
    found = next((t for t in evidence.tensors if t.name == tensor), None)
    if found is None:
        return f"{tensor!r} was not measured: {evidence.not_measured.get(tensor, 'it is not in the evidence')}"
    facts = facts_of(found) | unit_facts(found, evidence.units)
    if fact in facts:
        return facts[fact]
    if (value := _in_arrays(found, fact, measured)) is not None:
        return value
    near = ", ".join(get_close_matches(fact[:_LONGEST], facts, n=_NEAREST, cutoff=0.0))
    return f"{fact[:_LONGEST]!r} is not in the evidence; nearest of this tensor: {near}{_beside(found, measured)}"


def facts_of(tensor: TensorSensitivity) -> dict[str, float | None]:
    """Every fact that the file lists of one tensor, by name."""
    facts: dict[str, float | None] = {}
    for kind, gradient in (("scale", tensor.scale), ("shift", tensor.shift)):
        facts |= {f"{PREFIX}{kind}.{name}": _number(gradient, name) for name in _GRADIENT}
    facts |= {f"{PREFIX}by_row": tensor.by_row, f"{PREFIX}by_column": tensor.by_column}
    if tensor.direction:
        facts[f"{PREFIX}direction.strength"] = tensor.direction.strength
    facts |= {f"{PREFIX}row.{unit.index}": unit.calibrated for unit in tensor.top_rows}
    facts |= {f"{PREFIX}column.{unit.index}": unit.calibrated for unit in tensor.top_columns}
    return facts


def unit_facts(tensor: TensorSensitivity, units: Iterable[UnitSensitivity]) -> dict[str, float | None]:
    """The heads and neurons of a tensor's layer, by the names of the facts that they are of it."""
    mine = [unit for unit in units if unit.layer is not None and unit.layer == tensor.layer]
    return {_name(unit): unit.scale.calibrated for unit in mine}


def _name(unit: UnitSensitivity) -> str:
    expert = "" if unit.expert is None else f"{unit.expert}."
    return f"{PREFIX}{unit.kind}.{expert}{unit.index}"


def _in_arrays(tensor: TensorSensitivity, fact: str, measured: Measured | None) -> float | None:
    """The calibrated gradient of a row or column; None where the arrays do not have it."""
    place = measured.layout.places.get(tensor.name) if measured else None
    wanted = _ROW_OR_COLUMN.fullmatch(fact)
    if measured is None or place is None or wanted is None:
        return None
    where, number = (place.rows if wanted[1] == "row" else place.columns), int(wanted[2])
    count = where.stop - where.start
    if count < 2 or number >= count:  # the one row of a vector is the whole of it, whose facts are those of its scale
        return None
    return float(units_alone(measured, slice(where.start + number, where.start + number + 1)).gradient[0])


def _beside(tensor: TensorSensitivity, measured: Measured | None) -> str:
    """Which rows and columns there are facts of."""
    if measured is None or tensor.name not in measured.layout.places:
        return ""
    counted = [(what, count) for what, count in (("row", tensor.rows), ("column", tensor.columns)) if count > 1]
    return "".join(f"; {PREFIX}{what}.N: N from 0 to {count - 1}" for what, count in counted)


def _number(gradient: Gradient, name: str) -> float | None:
    value: float | None = getattr(gradient, name)
    return value
