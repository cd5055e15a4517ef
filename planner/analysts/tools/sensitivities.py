"""sensitivities: what forward and backward passes found about the weights, the largest predicted gain first.

It gives the names by which a plan cites these numbers, and the standard errors that say how much they are worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.figures import factor_text, figure, row
from planner.analysts.tools.meanings import said_of
from planner.analysts.tools.objective import about, measured_of
from planner.evidence import EvidenceFile, Gradient, TensorSensitivity
from planner.evidence.types import TopUnit
from planner.records import Record

__all__ = ["AGREEMENT", "Sensitivities"]

_USUAL, _MOST = 20, 60
AGREEMENT = {True: "yes", False: "no", None: "null"}
"""How `stable` is written."""
_COLUMNS = ("calibrated", "calibrated_se", "raw", "curvature", "drift", "stable")
_STABLE = "stable no: two halves of the documents disagree on the sign of calibrated"


class Ranking(Record):
    """What to rank."""

    by: Literal["scale", "shift", "by_row", "by_column", "units"]
    """scale: all of a tensor times one factor. shift: one number added to all of it. by_row, by_column: a factor for
    each row or column. units: heads and neurons, times one factor."""
    role: str | None = None
    """Only tensors of this role; null for all. Not for units."""
    most: int | None = Field(default=None, ge=1, le=_MOST)
    """How many to show, 1 to 60; null for 20."""


class Sensitivities(AgentTool[Ranking]):
    """The measured sensitivities, the largest predicted gain first, with standard errors; the loss they are about, and
    the ceiling: what this kind of edit can bring at best."""

    name: ClassVar[str] = "sensitivities"
    Arguments: ClassVar[type[Record]] = Ranking
    less: ClassVar[str] = "lower most, or name a role"

    def available(self, bench: Bench) -> bool:
        """Whether anything was measured."""
        return bench.brief.evidence is not None

    def run(self, arguments: Ranking, bench: Bench) -> str:
        """A line for each tensor or unit."""
        evidence, by, most = bench.evidence, arguments.by, arguments.most or _USUAL
        if by == "units":
            if arguments.role is not None:
                raise ToolRefused("units have no role: heads and neurons are made of several tensors; give null")
            return "\n".join([*about(evidence, None), *_units(evidence, most)])
        found = measured_of(bench, role=arguments.role)
        if by == "scale":
            return "\n".join([*about(evidence, "tensors"), *_scales(found, most, bench)])
        if by == "shift":
            return "\n".join([*about(evidence, None), *_shifts(found, most, bench)])
        return "\n".join([*about(evidence, "units"), *_fine(found, by, most, bench)])


def _gradient(gradient: Gradient) -> Iterator[str]:
    for column in _COLUMNS:
        yield AGREEMENT[gradient.stable] if column == "stable" else figure(getattr(gradient, column))


def _ranked(gradients: list[tuple[TensorSensitivity, Gradient]]) -> list[tuple[TensorSensitivity, Gradient]]:
    return sorted(gradients, key=lambda one: (-one[1].gain, -abs(one[1].calibrated)))


def _scales(found: Sequence[TensorSensitivity], most: int, bench: Bench) -> Iterator[str]:
    yield (
        f"{min(most, len(found))} of {len(found)} tensors; facts to cite: probe.scale.NAME, of every column but stable "
        f"and factor (the best factor; the fact probe.scale.step is its logarithm, uncut); {_STABLE}"
    )
    yield row("name", *_COLUMNS, "factor", "gain")
    for tensor, gradient in _ranked([(tensor, tensor.scale) for tensor in found])[:most]:
        shown, last = bench.aliases.shown(tensor.name), (factor_text(gradient.step), figure(gradient.gain))
        yield row(shown, *_gradient(gradient), *last)


def _shifts(found: Sequence[TensorSensitivity], most: int, bench: Bench) -> Iterator[str]:
    yield (
        f"{min(most, len(found))} of {len(found)} tensors; facts to cite: probe.shift.NAME, of each column but stable; "
        f"step is the best number to add; {_STABLE}; no ceiling is known for shifts"
    )
    yield row("name", *_COLUMNS, "step", "gain")
    for tensor, gradient in _ranked([(tensor, tensor.shift) for tensor in found])[:most]:
        shown, last = bench.aliases.shown(tensor.name), (figure(gradient.step), figure(gradient.gain))
        yield row(shown, *_gradient(gradient), *last)


def _fine(
    found: Sequence[TensorSensitivity], by: Literal["by_row", "by_column"], most: int, bench: Bench
) -> Iterator[str]:
    unit = by.removeprefix("by_")
    yield (
        f"{min(most, len(found))} of {len(found)} tensors; facts to cite: probe.{by}, and probe.{unit}.N, whose value "
        f"is calibrated, of any {unit} where there are several"
    )
    yield (
        f"probe.{by}: predicted gain of a factor for every {unit} of this tensor together, judged on documents that "
        f"did not choose them; one {unit} alone can win more than it says: largest_rows ranks them"
    )
    yield row("name", f"probe.{by}", f"most sensitive {unit}s: N calibrated (se)")
    for tensor in sorted(found, key=lambda one: -getattr(one, by))[:most]:
        top = tensor.top_rows if by == "by_row" else tensor.top_columns
        yield row(bench.aliases.shown(tensor.name), figure(getattr(tensor, by)), _top(top[:3]))


def _top(units: tuple[TopUnit, ...]) -> str:
    return ", ".join(f"{one.index} {figure(one.calibrated)} ({figure(one.calibrated_se)})" for one in units) or "-"


def _units(evidence: EvidenceFile, most: int) -> Iterator[str]:
    words = {(one.kind, one.layer, one.index, one.expert): one for one in evidence.words}
    units = sorted(evidence.units, key=lambda one: -one.scale.gain)
    experts = ", probe.neuron.E.N for expert E" if any(unit.expert is not None for unit in units) else ""
    yield (
        f"{min(most, len(units))} of {len(units)} units that are kept; facts to cite: probe.head.N and "
        f"probe.neuron.N{experts}, of any tensor of that layer, whose value is calibrated; {_STABLE}; no ceiling is "
        "known for units apart from that of rows and columns"
    )
    yield row("unit", *_COLUMNS, "factor", "gain", "words")
    for unit in units[:most]:
        where = "" if unit.layer is None else f" of layer {unit.layer}"
        where += "" if unit.expert is None else f" expert {unit.expert}"
        meant = words.get((unit.kind, unit.layer, unit.index, unit.expert))
        last = (factor_text(unit.scale.step), figure(unit.scale.gain), said_of(meant, most=2) if meant else "-")
        yield row(f"{unit.kind} {unit.index}{where}", *_gradient(unit.scale), *last)
