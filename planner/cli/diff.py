"""`planner diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.given import Json


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="Checkpoint folder, or hub id.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    as_json: Json = False,
) -> None:
    """Which tensors and keys of config.json differ, by how much, and the operation that explains a change exactly."""
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at
    from planner.effects import compare
    from planner.plan.wording import describe

    screen = Screen(as_json=as_json)
    first, second = checkpoint_at(a), checkpoint_at(b)
    with screen.progress("comparing", first.nbytes) as bar:
        found = compare(first, second, progress=bar.advance)
    screen.emit(found)
    rows = [
        (
            tensor.name,
            "-" if tensor.changed_elements is None else f"{tensor.changed_elements:,} of {tensor.elements:,}",
            "-" if tensor.relative_change is None else f"{tensor.relative_change:.3g}",
            describe(tensor.explanation.model_dump()) if tensor.explanation else tensor.note or "-",
        )
        for tensor in found.tensors
    ]
    if rows:
        headings = ("tensor", "elements changed", "|dW|/|W|", "operation that explains every bit")
        screen.table(headings, rows, left=1)
    for name in found.only_in_a:
        screen.show(f"only in {a}: {name}")
    for name in found.only_in_b:
        screen.show(f"only in {b}: {name}")
    for key in found.config:
        screen.prose(f"config.json: {key}", indent=0)
    count = len(found.tensors)
    same = f"the same bytes in all {found.compared} tensors"
    screen.show(f"{count} of {found.compared} tensors differ" if count else same)
    if not found.identical and not count:
        screen.show("and yet not the same model")
