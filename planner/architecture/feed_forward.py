"""MLPs as nodes of the graph: plain, gated, and mixtures of experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.architecture.blocks import Blocks, units
from planner.architecture.decoder import Experts, GatedMlp, Mlp, PlainMlp, Projection
from planner.architecture.graph import Activate, Mix, Product, Route, Sum
from planner.architecture.model_map import Band

__all__ = ["mlp"]


def mlp(blocks: Blocks, spec: Mlp, x: int, width: int, *, expert: int | None = None, prefix: str = "") -> int:
    """An MLP or a mixture of experts, from the (normalised) stream at node `x` to what is added to the stream."""
    if isinstance(spec, Experts):
        return _experts(blocks, spec, x, width)

    def named(projection: Projection) -> Projection:
        return replace(projection, name=projection.name.format(expert=expert))

    down = named(spec.down)
    blocks.expect(down, width, spec.width)
    if isinstance(spec, PlainMlp):
        inner = blocks.projected(
            named(spec.up), x, spec.width, part=prefix + "up", reads=True, out_bands=_neurons("up", spec.width),
            expert=expert,
        )  # fmt: skip
        hidden = _activated(blocks, inner, spec.activation)
    else:
        spec = replace(spec, gate=named(spec.gate), up=named(spec.up) if spec.up else None)
        gate, up = _gate_and_up(blocks, spec, x, expert, prefix)
        hidden = blocks.graph.add(
            Product(
                width=spec.width, layer=blocks.layer, says="the gated product",
                x=up, y=_activated(blocks, gate, spec.activation),
            )
        )  # fmt: skip
    bands = _neurons("down", spec.width)
    return blocks.projected(down, hidden, width, part=prefix + "down", writes=True, in_bands=bands, expert=expert)


def _gate_and_up(blocks: Blocks, spec: GatedMlp, x: int, expert: int | None, prefix: str) -> tuple[int, int]:
    inner = spec.width
    if spec.up is not None:
        gate, up = (
            blocks.projected(
                projection, x, inner, part=prefix + part, reads=True, out_bands=_neurons(part, inner), expert=expert
            )
            for part, projection in (("gate", spec.gate), ("up", spec.up))
        )
        return gate, up
    bands = _neurons("gate", inner) + _neurons("up", inner, first=inner)
    fused = blocks.projected(
        spec.gate, x, 2 * inner, part=prefix + "gate+up", reads=True, out_bands=bands, expert=expert
    )
    return blocks.channels(fused, np.arange(inner)), blocks.channels(fused, np.arange(inner, 2 * inner))


def _activated(blocks: Blocks, x: int, function: str) -> int:
    width = blocks.graph.nodes[x].width
    return blocks.graph.add(Activate(width=width, layer=blocks.layer, says=function, x=x, function=function))


def _experts(blocks: Blocks, spec: Experts, x: int, width: int) -> int:
    logits = blocks.projected(spec.router, x, spec.count, part="router", reads=True)
    correction = None
    if spec.correction:
        correction = blocks.take(spec.correction, (spec.count,), part="router_correction")
    route = blocks.graph.add(
        Route(
            width=spec.count, layer=blocks.layer, says="the router", logits=logits, scoring=spec.scoring,
            top=spec.top, renormalized=spec.renormalized, correction=correction,
        )
    )  # fmt: skip
    outs = tuple(mlp(blocks, spec.expert, x, width, expert=number, prefix="expert_") for number in range(spec.count))
    mixed = blocks.graph.add(
        Mix(width=width, layer=blocks.layer, says="the mixture of the experts", route=route, experts=outs)
    )
    if spec.shared is None:
        return mixed
    shared = mlp(blocks, spec.shared, x, width, prefix="shared_")
    if spec.shared_gate:
        gate = _activated(blocks, blocks.projected(spec.shared_gate, x, 1, part="shared_gate", reads=True), "sigmoid")
        shared = blocks.graph.add(
            Product(width=width, layer=blocks.layer, says="the shared experts' gate", x=shared, y=gate)
        )
    terms = (mixed, shared)
    return blocks.graph.add(Sum(width=width, layer=blocks.layer, says="the experts' sum", terms=terms, stream=False))


def _neurons(part: str, count: int, *, first: int = 0) -> tuple[Band, ...]:
    """The band of an MLP's neurons, a row each."""
    return (Band(part, "neuron", "rows", first + units(count, 1)),)
