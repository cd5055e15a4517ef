"""histogram: how the values of one tensor are distributed, from the counts kept with the profile."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from planner.analysts.tools.base import AgentTool, Bench, ToolRefused
from planner.analysts.tools.figures import figure, row
from planner.records import Record

__all__ = ["DrawHistogram"]

_USUAL, _MOST = 20, 40


class Binning(Record):
    """Which histogram."""

    tensor: str
    """Name of the tensor."""
    bins: int | None = Field(default=None, ge=1, le=_MOST)
    """How many bins of equal width between the smallest and the largest value, 1 to 40; null for 20."""


class DrawHistogram(AgentTool[Binning]):
    """The values of one tensor in bins of equal width, with the exact count of each. For quantiles and other facts to
    cite, ask tensor_statistics."""

    name: ClassVar[str] = "histogram"
    Arguments: ClassVar[type[Record]] = Binning
    less: ClassVar[str] = "ask for fewer bins"

    def run(self, arguments: Binning, bench: Bench) -> str:
        """A line for each bin."""
        (tensor,) = bench.tensors([arguments.tensor])
        name = bench.aliases.shown(tensor.name)
        kept = bench.brief.histograms.of(tensor) if bench.brief.histograms else None
        if kept is None:
            raise ToolRefused(f"no histogram of {name} is kept; tensor_statistics has its quantiles")
        bins = kept.bins(arguments.bins or _USUAL)
        if bins is None:
            return f"{name}: nothing to draw; min = {figure(tensor.min)}, max = {figure(tensor.max)}, {_beside(tensor)}"
        edges, counts = bins
        exact = "exact" if kept.exact else "values are cut to their upper 16 bits, so edges are sharp to 1% only"
        return "\n".join(
            [
                f"{name}: {sum(counts)} finite elements in {len(counts)} bins ({exact}); {_beside(tensor)}",
                row("from", "to", "count"),
                *(
                    row(figure(low), figure(high), str(count))
                    for low, high, count in zip(edges, edges[1:], counts, strict=False)
                ),
            ]
        )


def _beside(tensor: object) -> str:
    return ", ".join(f"{name} = {getattr(tensor, name)}" for name in ("zeros", "nan", "inf"))
