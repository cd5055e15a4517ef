"""`planner map`."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.given import Json, ModelArgument


def command(
    model: ModelArgument,
    every: Annotated[bool, typer.Option("--all", help="List every tensor, not one layer of each kind.")] = False,
    as_json: Json = False,
) -> None:
    """The architecture: which tensor does what, from names, shapes and config.json; no weight is read."""
    from planner.architecture import map_of, summary_of
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at

    screen = Screen(as_json=as_json)
    checkpoint = checkpoint_at(model)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    found = summary_of(map_of(checkpoint.config, shapes), checkpoint.name)
    screen.emit(found)
    screen.show(f"{found.name}: {found.family or 'unknown family'}" + ("" if found.known else f": {found.reason}"))
    for fact in found.facts:
        screen.prose(fact, indent=2)
    rows, layers_seen = [], set()
    for tensor in found.tensors:
        kind = (tensor.part, tensor.role, shapes.get(tensor.name))
        if not every and (tensor.layer is not None or tensor.expert is not None) and kind in layers_seen:
            continue
        layers_seen.add(kind)
        stream = "reads" if tensor.reads else "writes" if tensor.writes else ""
        bands = ", ".join(f"{b.count} {b.part} {b.unit}s in {b.axis}" for b in tensor.bands)
        shape = "x".join(map(str, shapes.get(tensor.name, ())))
        rows.append((tensor.name, tensor.part, shape, stream, bands))
    if rows:
        screen.table(("tensor", "part", "shape", "stream", "heads, neurons"), rows, left=5, spare=("heads, neurons",))
        left_out = len(found.tensors) - len(rows)
        if left_out:
            screen.show(f"{left_out:,} more tensors like these in other layers or experts (--all lists them)")
    for name, why in found.unread.items():
        screen.prose(f"{name}: {why}", indent=0)
    for name in found.unmapped[:10]:
        screen.show(f"{name}: no place in this family; its effects are unknown")
