"""The pieces that blocks are made of, as nodes of the graph: stored arrays, linear maps, normalisers, sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.architecture.config import Unreadable
from planner.architecture.decoder import Norm, Projection
from planner.architecture.graph import Channels, Graph, Join, Linear, Normalize, Sum, Weight
from planner.architecture.model_map import Axis, Band, Parameter

__all__ = ["Blocks", "Indices", "units"]

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Blocks:
    """Adds nodes to a graph, for one block (or for what is outside of them), and keeps which tensors they read."""

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    parameters: dict[str, Parameter]
    layer: int | None = None
    prefix: str = ""

    def at(self, layer: int | None, prefix: str) -> Blocks:
        """The same, for another block."""
        return replace(self, layer=layer, prefix=prefix)

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        part: str,
        reads: Axis | None = None,
        writes: Axis | None = None,
        bands: tuple[Band, ...] = (),
        expert: int | None = None,
        transposed: bool = False,
    ) -> Weight:
        """The stored array of that name inside the block. Raises `Unreadable` if it is absent or shaped otherwise."""
        full = self.prefix + name
        self._compare(full, shape[::-1] if transposed else shape)
        if full in self.parameters:
            raise Unreadable(f"{full} would have two places in the model")
        self.parameters[full] = Parameter(full, self.layer, part, reads, writes, bands, expert, transposed=transposed)
        return Weight(full, transposed)

    def expect(self, projection: Projection, outputs: int, inputs: int) -> None:
        """Raise `Unreadable` unless that matrix is stored; before the configuration's sizes make arrays."""
        shape = (inputs, outputs) if projection.transposed else (outputs, inputs)
        self._compare(self.prefix + projection.name + ".weight", shape)

    def _compare(self, full: str, stored: tuple[int, ...]) -> None:
        found = self.shapes.get(full)
        if found is None:
            raise Unreadable(f"there is no {full}")
        if found != stored:
            raise Unreadable(f"{full} is {list(found)}; its configuration asks for {list(stored)}")

    def bias(
        self,
        projection: Projection,
        width: int,
        *,
        part: str,
        writes: Axis | None,
        bands: tuple[Band, ...] = (),
        expert: int | None = None,
    ) -> Weight | None:
        """The bias of a linear map, if it has one."""
        if not projection.bias:
            return None
        along = tuple(replace(band, axis="columns") for band in bands)
        return self.take(
            projection.name + ".bias", (width,), part=f"{part}.bias", writes=writes, bands=along, expert=expert
        )

    def bias_known(self, projection: Projection, full: str) -> None:
        """Note at the weight called `full` what its bias is called, and which key decides whether there is one."""
        self.parameters[full] = replace(
            self.parameters[full], bias=full.removesuffix(".weight") + ".bias", bias_flag=projection.bias_flag
        )

    def projected(
        self,
        projection: Projection,
        x: int,
        width: int,
        *,
        part: str,
        reads: bool = False,
        writes: bool = False,
        out_bands: tuple[Band, ...] = (),
        in_bands: tuple[Band, ...] = (),
        expert: int | None = None,
    ) -> int:
        """A linear map of node `x` to `width` channels. Bands are given for a matrix [outputs, inputs]."""
        flipped = projection.transposed
        outputs: Axis = "columns" if flipped else "rows"
        inputs: Axis = "rows" if flipped else "columns"
        bands = tuple(replace(b, axis=outputs) for b in out_bands) + tuple(replace(b, axis=inputs) for b in in_bands)
        weight = self.take(
            projection.name + ".weight",
            (width, self.graph.nodes[x].width),
            part=part,
            reads=inputs if reads else None,
            writes=outputs if writes else None,
            bands=bands,
            expert=expert,
            transposed=flipped,
        )
        self.bias_known(projection, weight.tensor)
        bias = self.bias(
            projection, width, part=part, writes="columns" if writes else None, bands=out_bands, expert=expert
        )
        return self.graph.add(
            Linear(width=width, layer=self.layer, says=_last(projection.name), x=x, weight=weight, bias=bias)
        )

    def normalized(self, norm: Norm, x: int, width: int, *, part: str, heads: int = 1) -> int:
        """A normaliser of node `x`."""
        if norm.name is not None and "{head}" in norm.name:
            return self._normalized_apart(norm, x, width, part=part, heads=heads)
        group = width // heads if norm.over == "head" else width
        weight = bias = None
        if norm.name is not None:
            length = group if norm.over == "head" and norm.weight == "shared" else width
            shape: tuple[int, ...] = (length,)
            if norm.over == "head" and norm.weight == "full" and (self.prefix + norm.name + ".weight") in self.shapes:
                stored = self.shapes[self.prefix + norm.name + ".weight"]
                shape = stored if stored in {(width,), (heads, group)} else shape
            weight = self.take(norm.name + ".weight", shape, part=part)
            bias = self.take(norm.name + ".bias", shape, part=f"{part}.bias") if norm.bias else None
        says = _last(norm.name) if norm.name else "the normaliser"
        return self.graph.add(
            Normalize(
                width=width, layer=self.layer, says=says, x=x, kind=norm.kind, group=group, weight=weight, bias=bias,
                one_plus=norm.one_plus,
            )
        )  # fmt: skip

    def _normalized_apart(self, norm: Norm, x: int, width: int, *, part: str, heads: int) -> int:
        """A normaliser a head, each with tensors of its own."""
        assert norm.name is not None
        size = width // heads
        places = []
        for head in range(heads):
            inside = self.channels(x, np.arange(head * size, (head + 1) * size))
            one = replace(norm, name=norm.name.format(head=head), over="all")
            places.append(self.normalized(one, inside, size, part=part))
        return self.graph.add(Join(width=width, layer=self.layer, says="the heads", parts=tuple(places)))

    def channels(self, x: int, indices: Indices) -> int:
        """Some channels of node `x`."""
        says = self.graph.nodes[x].says
        return self.graph.add(Channels(width=len(indices), layer=self.layer, says=says, x=x, indices=indices))

    def added(self, stream: int, out: int, half: str) -> int:
        """The residual stream after a half of the block."""
        says = "the residual stream after the " + ("attention" if half == "attention" else "MLP")
        width = self.graph.nodes[stream].width
        return self.graph.add(Sum(width=width, layer=self.layer, says=says, terms=(stream, out)))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def units(count: int, width: int) -> Indices:
    """Indices [count, width] of heads or neurons that lie side by side."""
    return np.arange(count * width, dtype=np.int64).reshape(count, width)
