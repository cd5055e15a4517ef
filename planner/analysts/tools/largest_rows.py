"""largest_rows: which single rows or columns a factor of their own would bring most for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.figures import factor_text, figure, row
from planner.analysts.tools.objective import about, measured_of
from planner.analysts.tools.rows import MOST_ROWS, Axis, RowStep
from planner.records import Record

__all__ = ["LargestRows"]

_USUAL = 20
_FEW_GROUPS = 30
_DIGITS = 4
_COLUMNS = ("calibrated", "calibrated_se", "z", "curvature", "drift", "factor", "gain")


class RowRanking(Record):
    """Which rows or columns to rank."""

    by: Axis
    """row or column; a vector has columns alone."""
    tensor: str | None = None
    """Only of this tensor; null for all."""
    role: str | None = None
    """Only of this role; null for all."""
    most: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """How many to show, 1 to 40; null for 20."""


class LargestRows(AgentTool[RowRanking]):
    """The single rows or columns whose own best factor is predicted to gain most, with that factor, standard errors,
    and the token that a row is."""

    name: ClassVar[str] = "largest_rows"
    Arguments: ClassVar[type[Record]] = RowRanking
    less: ClassVar[str] = "lower most, or name a tensor"

    def available(self, bench: Bench) -> bool:
        """Whether anything was measured."""
        return bench.brief.evidence is not None

    def run(self, arguments: RowRanking, bench: Bench) -> str:
        """A line for each row or column."""
        axis = arguments.by
        tensors = [tensor.name for tensor in measured_of(bench, tensor=arguments.tensor, role=arguments.role)]
        count, found = bench.rows.largest(tensors, axis, arguments.most or _USUAL)
        if not found:
            raise ToolRefused(f"these tensors have no {axis}s apart: each is one {axis}; see sensitivities by scale")
        tokens = any(bench.rows.is_table(one.tensor) for one in found) and axis == "row"
        lines = [
            *about(bench.evidence, "units"),
            f"{len(found)} of {count} {axis}s; facts to cite: probe.{axis}.N of the tensor, whose value is calibrated; "
            f"z is calibrated / se{_by_chance(count, found, bench.evidence.groups)}",
            "factor is the best for this one alone and gain what it is predicted to take off the calibrated loss, on "
            "the documents that chose it; gains of several do not add up",
            row("name", "fact", *_COLUMNS, *(["token"] if tokens else [])),
        ]
        return "\n".join([*lines, *(_line(one, axis, bench, tokens=tokens) for one in found)])


def _by_chance(count: int, found: Sequence[RowStep], groups: int) -> str:
    """The size that the largest of so many standard normal numbers has, of either sign: sqrt(2 ln(2 n))."""
    if all(one.gradient.calibrated_se is None for one in found):
        return ""
    more = f", and more with as few as {groups} groups of documents" if groups < _FEW_GROUPS else ""
    return f"; among {count}, noise alone gives |z| near {math.sqrt(2 * math.log(2 * count)):.2g}{more}"


def _line(one: RowStep, axis: Axis, bench: Bench, *, tokens: bool) -> str:
    gradient = one.gradient
    z = gradient.calibrated / gradient.calibrated_se if gradient.calibrated_se else None
    others = (gradient.calibrated_se, z, gradient.curvature, gradient.drift)
    token = bench.rows.token(one.tensor, axis, one.number)
    return row(
        bench.aliases.shown(one.tensor),
        f"probe.{axis}.{one.number}",
        figure(gradient.calibrated),
        *(figure(number, _DIGITS) for number in others),
        factor_text(gradient.step),
        figure(gradient.gain, _DIGITS),
        *([f"{one.number} {token}" if token else "-"] if tokens else []),
    )
