"""tensor_sensitivity: everything that was measured of one tensor, by the names that a plan cites."""

from __future__ import annotations

from typing import ClassVar

from planner.analysts.tools.base import AgentTool, Bench
from planner.analysts.tools.figures import factor_text, facts_line, figure
from planner.analysts.tools.objective import measured_of
from planner.analysts.tools.rows import Axis
from planner.analysts.tools.sensitivities import AGREEMENT
from planner.evidence.facts import facts_of, unit_facts
from planner.evidence.types import TopUnit
from planner.records import Record

__all__ = ["TensorSensitivities"]

_GROUPS = ("probe.scale.", "probe.shift.", "probe.by_", "probe.direction.")


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
        (found,) = measured_of(bench, tensor=arguments.tensor)
        facts = facts_of(found)
        lines = [f"{bench.aliases.shown(found.name)}: {found.rows} rows, {found.columns} columns"]
        for group in _GROUPS:
            some = [(name, value) for name, value in facts.items() if name.startswith(group)]
            lines += [f"facts to cite: {facts_line(some)}"] if some else []
        lines.append(
            f"best factor for all of it: {factor_text(found.scale.step)}; the halves of the documents agree on the "
            f"sign: scale {AGREEMENT[found.scale.stable]}, shift {AGREEMENT[found.shift.stable]}"
        )
        tops: tuple[tuple[Axis, tuple[TopUnit, ...]], ...] = (("row", found.top_rows), ("column", found.top_columns))
        for axis, units in tops:
            said = ", ".join(_unit(found.name, axis, unit, bench) for unit in units)
            lines += [f"facts to cite, of its most sensitive {axis}s: {said}"] if units else []
        if heads := unit_facts(found, bench.evidence.units):
            lines.append(f"facts to cite, of heads and neurons of its layer: {facts_line(heads.items())}")
        if direction := found.direction:
            lines.append(
                f"its leading direction holds {figure(direction.share)} of the gradient's squared norm; the halves "
                f"agree on it with |cosine| {figure(direction.agreement)}"
            )
        return "\n".join(lines)


def _unit(tensor: str, axis: Axis, unit: TopUnit, bench: Bench) -> str:
    """One row or column with its best factor, where the arrays hold it."""
    beside = [f"se {figure(unit.calibrated_se)}"]
    if gradient := bench.rows.at(tensor, axis, unit.index):
        beside += [f"best factor {factor_text(gradient.step)}", f"gain {figure(gradient.gain)}"]
    if token := bench.rows.token(tensor, axis, unit.index):
        beside.append(f"token {token}")
    return f"probe.{axis}.{unit.index} = {figure(unit.calibrated)} ({'; '.join(beside)})"
