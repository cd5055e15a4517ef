"""tensor_statistics: everything that the profile knows of a few tensors, by the names that a plan cites."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from planner.analysts.tools.base import AgentTool, Bench
from planner.analysts.tools.figures import facts_line, figure, row, shape_text
from planner.effects import CITABLE
from planner.profile import TensorProfile, standings
from planner.profile.types import Experts, HeadNorms, NormSummary
from planner.records import Record

__all__ = ["TensorStatistics", "citable_facts"]

_MOST = 8
_MOST_HEADS = 64
_FEWEST_PEERS = 3
_NOT_CITABLE = ("negative_zeros", "subnormals", "negative_inf", "entropy")
_COMPARED = ("rms", "abs_max", "kurtosis", "offset")


class Named(Record):
    """Which tensors to describe."""

    tensors: tuple[str, ...] = Field(min_length=1, max_length=_MOST)
    """Names of 1 to 8 tensors, without patterns."""


class TensorStatistics(AgentTool[Named]):
    """Every statistic of up to 8 tensors: the facts that a plan may cite, norms of rows, columns and heads, the largest
    elements, and how far each tensor stands from the same role in other layers."""

    name: ClassVar[str] = "tensor_statistics"
    Arguments: ClassVar[type[Record]] = Named
    less: ClassVar[str] = "name fewer tensors"

    def run(self, arguments: Named, bench: Bench) -> str:
        """A block for each tensor."""
        found = bench.tensors(dict.fromkeys(arguments.tensors))
        return "\n\n".join("\n".join(_described(tensor, bench)) for tensor in found)


def citable_facts(tensor: TensorProfile) -> dict[str, float | None]:
    """Every fact of the profile that a plan may cite of this tensor, by name."""
    facts: dict[str, float | None] = {name: getattr(tensor, name) for name in CITABLE}
    facts |= {f"quantiles.{key}": value for key, value in tensor.quantiles.items()}
    return facts | {f"outliers.{key}": value for key, value in tensor.outliers.items()}


def _described(tensor: TensorProfile, bench: Bench) -> Iterator[str]:
    where = "outside the layers" if tensor.layer is None else f"layer {tensor.layer}"
    where += "" if tensor.expert is None else f" expert {tensor.expert}"
    role = bench.roles[tensor.role]
    yield row(bench.aliases.shown(tensor.name), role, where, tensor.dtype, shape_text(tensor.shape))
    if not tensor.understood:
        yield f"values of {tensor.dtype} are not read here, so there are no statistics, and no operation changes them"
        return
    facts = citable_facts(tensor)
    for kind in ("", "quantiles.", "outliers."):
        some = [(name, facts[name]) for name in facts if (name.startswith(kind) if kind else "." not in name)]
        if some:
            yield f"facts to cite: {facts_line(some)}"
    yield "no facts to cite: " + facts_line((name, getattr(tensor, name)) for name in _NOT_CITABLE)
    peers = bench.peers.get(tensor.name, [])
    if len(peers) >= _FEWEST_PEERS:
        yield f"robust z among {len(peers)} of this role and shape: {_standing(tensor, peers)}"
    for what, norms in (("rows", tensor.rows), ("columns", tensor.columns)):
        if norms:
            yield f"norms of {what} (no facts to cite): {_norms(norms)}"
    for heads in tensor.heads:
        yield _heads(heads)
    if tensor.largest:
        some_elements = (f"{list(one.index)} = {figure(one.value)}" for one in tensor.largest[:8])
        yield f"largest elements (no facts to cite): {', '.join(some_elements)}"
    if tensor.experts:
        yield _experts(tensor.experts)
    if spectrum := tensor.spectrum:
        names = ("stable_rank", "effective_rank", "tail_exponent")
        leading = ", ".join(figure(value) for value in spectrum.singular_values)
        numbers = facts_line((name, getattr(spectrum, name)) for name in names)
        yield f"singular values (no facts to cite; {spectrum.method}): {leading}; {numbers}"


def _standing(tensor: TensorProfile, peers: list[TensorProfile]) -> str:
    said = []
    for statistic in _COMPARED:
        for one in standings(peers, statistic):
            if one.tensor.name == tensor.name:
                said.append(f"{statistic} {one.robust_z:+.2f} (median {figure(one.typical)})")
    return ", ".join(said) or "none"


def _norms(norms: NormSummary) -> str:
    numbers = facts_line((name, getattr(norms, name)) for name in ("count", "min", "median", "max", "cv"))
    smallest, largest = (", ".join(map(str, places[:8])) for places in (norms.smallest_at, norms.largest_at))
    return f"{numbers}; smallest at {smallest}; largest at {largest}"


def _heads(heads: HeadNorms) -> str:
    title = f"norms of {len(heads.norms)} {heads.part} heads ({heads.axis}, {heads.width} each; no facts to cite)"
    if len(heads.norms) <= _MOST_HEADS:
        return f"{title}: " + ", ".join(figure(norm) for norm in heads.norms)
    order = sorted(range(len(heads.norms)), key=lambda head: heads.norms[head])
    ends = (", ".join(f"{head}: {figure(heads.norms[head])}" for head in some) for some in (order[:8], order[-8:]))
    return f"{title}: smallest {next(ends)}; largest {next(ends)}"


def _experts(experts: Experts) -> str:
    said = []
    for statistic in ("rms", "abs_max", "kurtosis"):
        numbered = [(value, place) for place, value in enumerate(getattr(experts, statistic)) if value is not None]
        if numbered:
            (low, least), (high, most) = min(numbered), max(numbered)
            said.append(f"{statistic} from {figure(low)} (expert {least}) to {figure(high)} (expert {most})")
    return f"{experts.count} experts (no facts to cite): " + "; ".join(said)
