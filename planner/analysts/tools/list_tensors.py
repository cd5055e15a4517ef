"""list_tensors: which tensors there are, sorted by a statistic if that is asked for."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.figures import figure, row, shape_text
from planner.analysts.tools.selection import StatisticName, meaning_of, selected, statistic_called, with_statistics
from planner.profile import TensorProfile
from planner.profile.peers import STATISTICS
from planner.records import Record

__all__ = ["ListTensors"]

_USUAL, _MOST = 40, 200


class Listing(Record):
    """Which tensors to list."""

    pattern: str | None = Field(default=None, max_length=1024)
    """Names, with `*`, `?` and `{0-3,7}` as in the target of a plan, where aliases such as t0003 are written out; null
    for all."""
    role: str | None = Field(default=None, max_length=512)
    """Only this role, such as down_proj; null for all."""
    layers: str | None = Field(default=None, max_length=1024)
    """Only these layers, such as `0-3,7`; null for all and those outside the layers."""
    sort_by: StatisticName | None = None
    """The statistic to show and to sort by, the largest value first; null shows rms in the order of the files."""
    most: int | None = Field(default=None, ge=1, le=_MOST)
    """How many to show, 1 to 200; null for 40."""


class ListTensors(AgentTool[Listing]):
    """Lists tensors with dtype, shape, role, layer and one statistic. The names are those to use in a plan."""

    name: ClassVar[str] = "list_tensors"
    Arguments: ClassVar[type[Record]] = Listing
    less: ClassVar[str] = "narrow it with pattern, role or layers"

    def parameters(self, bench: Bench) -> dict[str, Any]:
        """With the statistics that this profile has."""
        return with_statistics(super().parameters(bench), "sort_by", bench)

    def run(self, arguments: Listing, bench: Bench) -> str:
        """A line for each tensor."""
        statistic = statistic_called(arguments.sort_by, bench) if arguments.sort_by else "rms"
        found = selected(bench, pattern=arguments.pattern, role=arguments.role, layers=arguments.layers)
        measure = STATISTICS[statistic].of
        values = {tensor.name: measure(tensor) for tensor in found}
        if arguments.sort_by:
            if all(value is None for value in values.values()):
                raise ToolRefused(f"none of the {len(found)} tensors has {statistic}; others here do")
            found = sorted(found, key=lambda tensor: _falling(values[tensor.name]))
        shown = found[: arguments.most or _USUAL]
        lines = [
            f"{len(shown)} of {len(found)} tensors"
            + (f", by {statistic}, the largest first" if arguments.sort_by else ", in the order of the files"),
            row("name", "dtype", "shape", "role", "layer", meaning_of(statistic)),
            *(_line(tensor, values[tensor.name], bench) for tensor in shown),
        ]
        if len(shown) < len(found):
            lines.append(f"{len(found) - len(shown)} more are not shown: {self.less}, or raise most (at most {_MOST})")
        return "\n".join(lines)


def _falling(value: float | None) -> tuple[bool, float]:
    """The largest first, those without a value last."""
    return value is None, -(value or 0.0)


def _line(tensor: TensorProfile, value: float | None, bench: Bench) -> str:
    layer = "-" if tensor.layer is None else str(tensor.layer)
    layer += "" if tensor.expert is None else f" expert {tensor.expert}"
    role = bench.roles[tensor.role]
    return row(bench.aliases.shown(tensor.name), tensor.dtype, shape_text(tensor.shape), role, layer, figure(value))
