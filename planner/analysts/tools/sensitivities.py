"""sensitivities and tensor_sensitivity: what forward and backward passes found about the weights.

Both give the names by which a plan cites these numbers, and the standard errors that say how much they are worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from planner.analysts.aliases import quoted
from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.figures import facts_line, figure, row
from planner.analysts.tools.meanings import said_of
from planner.analysts.tools.selection import role_called
from planner.evidence import EvidenceFile, Gradient, TensorSensitivity
from planner.evidence.facts import facts_of
from planner.evidence.types import TopUnit
from planner.records import Record

__all__ = ["Sensitivities", "TensorSensitivities"]

_USUAL, _MOST = 20, 60
_YES = {True: "yes", False: "no", None: "null"}
_COLUMNS = ("calibrated", "calibrated_se", "raw", "curvature", "drift", "stable", "step", "gain")


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
    the ceilings: what each kind of edit can bring at best."""

    name: ClassVar[str] = "sensitivities"
    Arguments: ClassVar[type[Record]] = Ranking
    less: ClassVar[str] = "lower most, or name a role"

    def available(self, bench: Bench) -> bool:
        """Whether anything was measured."""
        return bench.brief.evidence is not None

    def run(self, arguments: Ranking, bench: Bench) -> str:
        """A line for each tensor or unit."""
        evidence, most = bench.evidence, arguments.most or _USUAL
        if arguments.by == "units":
            if arguments.role is not None:
                raise ToolRefused("units have no role: heads and neurons are made of several tensors; give null")
            return "\n".join([*_about(evidence), *_units(evidence, most)])
        found = list(evidence.tensors)
        if arguments.role is not None:
            role = role_called(arguments.role, bench)
            found = [tensor for tensor in found if tensor.role == role]
            if not found:
                why = {evidence.not_measured.get(t.name) for t in bench.brief.profile.tensors if t.role == role}
                reason = bench.told("; ".join(sorted(filter(None, why)))) or "they are not in the evidence"
                raise ToolRefused(f"no tensor of the role {bench.roles[role]} was measured: {reason}")
        if arguments.by == "scale" or arguments.by == "shift":
            lines = _whole(found, arguments.by, most, bench)
        else:
            lines = _fine(found, arguments.by, most, bench)
        return "\n".join([*_about(evidence), *lines])


def _about(evidence: EvidenceFile) -> Iterator[str]:
    objective = evidence.objective
    yield (
        f"objective {objective.kind}: loss {figure(objective.loss)}, calibrated loss "
        f"{figure(objective.calibrated_loss)} at temperature {figure(objective.temperature)}; "
        f"{evidence.groups} groups of documents; negative calibrated: a "
        "positive step lowers the loss; a step of scale is the log of the factor"
    )
    for ceiling in evidence.ceilings:
        hopeless = "; NOTHING TO WIN: no search of this kind will find anything" if ceiling.hopeless else ""
        yield (
            f"ceiling of {ceiling.kind}: gain {figure(ceiling.gain)} (se {figure(ceiling.gain_se)}) at drift "
            f"{figure(ceiling.drift)}{hopeless}"
        )


def _gradient(gradient: Gradient) -> Iterator[str]:
    for column in _COLUMNS:
        yield _YES[gradient.stable] if column == "stable" else figure(getattr(gradient, column))


def _whole(found: list[TensorSensitivity], by: Literal["scale", "shift"], most: int, bench: Bench) -> Iterator[str]:
    gradients = [(tensor, tensor.scale if by == "scale" else tensor.shift) for tensor in found]
    gradients.sort(key=lambda one: (-one[1].gain, -abs(one[1].calibrated)))
    yield f"{min(most, len(found))} of {len(found)} tensors; facts to cite: probe.{by}.NAME, of every column but stable"
    yield row("name", *_COLUMNS)
    for tensor, gradient in gradients[:most]:
        yield row(bench.aliases.shown(tensor.name), *_gradient(gradient))


def _fine(found: list[TensorSensitivity], by: Literal["by_row", "by_column"], most: int, bench: Bench) -> Iterator[str]:
    units = "rows" if by == "by_row" else "columns"
    yield (
        f"{min(most, len(found))} of {len(found)} tensors; facts to cite: probe.{by}, and probe.{units[:-1]}.N of the "
        f"{units} listed"
    )
    yield row("name", f"probe.{by}", f"largest {units}: N calibrated (se)")
    for tensor in sorted(found, key=lambda one: -getattr(one, by))[:most]:
        top = tensor.top_rows if by == "by_row" else tensor.top_columns
        yield row(bench.aliases.shown(tensor.name), figure(getattr(tensor, by)), _top(top[:3]))


def _top(units: tuple[TopUnit, ...]) -> str:
    return ", ".join(f"{one.index} {figure(one.calibrated)} ({figure(one.calibrated_se)})" for one in units) or "-"


def _units(evidence: EvidenceFile, most: int) -> Iterator[str]:
    words = {(one.kind, one.layer, one.index, one.expert): one for one in evidence.words}
    units = sorted(evidence.units, key=lambda one: -one.scale.gain)
    yield f"{min(most, len(units))} of {len(units)} units that are kept; no facts to cite: cite those of their tensors"
    yield row("unit", *_COLUMNS, "words")
    for unit in units[:most]:
        where = "" if unit.layer is None else f" of layer {unit.layer}"
        where += "" if unit.expert is None else f" expert {unit.expert}"
        meant = words.get((unit.kind, unit.layer, unit.index, unit.expert))
        yield row(f"{unit.kind} {unit.index}{where}", *_gradient(unit.scale), said_of(meant, most=2) if meant else "-")


class Sensitive(Record):
    """Which tensor."""

    tensor: str
    """Name of the tensor."""


class TensorSensitivities(AgentTool[Sensitive]):
    """Everything that was measured of one tensor, by the names that a plan cites: scale, shift, its most sensitive rows
    and columns, and the leading direction of its gradient."""

    name: ClassVar[str] = "tensor_sensitivity"
    Arguments: ClassVar[type[Record]] = Sensitive
    less: ClassVar[str] = "there is no shorter form"

    def available(self, bench: Bench) -> bool:
        """Whether anything was measured."""
        return bench.brief.evidence is not None

    def run(self, arguments: Sensitive, bench: Bench) -> str:
        """Facts, then what else is known."""
        (tensor,) = bench.tensors([arguments.tensor])
        shown, found = bench.aliases.shown(tensor.name), bench.sensitivities.get(tensor.name)
        if found is None:
            why = quoted(bench.evidence.not_measured.get(tensor.name, "it is not in the evidence"), longest=200)
            raise ToolRefused(f"{shown} was not measured: {why}")
        facts = facts_of(found)
        lines = [f"{shown}: {found.rows} rows, {found.columns} columns"]
        for group in ("probe.scale.", "probe.shift.", "probe.by_", "probe.direction."):
            some = [(name, value) for name, value in facts.items() if name.startswith(group)]
            lines += [f"facts to cite: {facts_line(some)}"] if some else []
        lines.append(
            f"the halves of the documents agree on the sign: scale {_YES[found.scale.stable]}, "
            f"shift {_YES[found.shift.stable]}"
        )
        for what, units in (("row", found.top_rows), ("column", found.top_columns)):
            said = (f"probe.{what}.{u.index} = {figure(u.calibrated)} (se {figure(u.calibrated_se)})" for u in units)
            lines += [f"facts to cite, of its most sensitive {what}s: {', '.join(said)}"] if units else []
        if direction := found.direction:
            lines.append(
                f"its leading direction holds {figure(direction.share)} of the gradient's squared norm; the halves "
                f"agree on it with |cosine| {figure(direction.agreement)}"
            )
        return "\n".join(lines)
