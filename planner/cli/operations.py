"""`planner operations`."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.given import Json
from planner.errors import UsageError


def command(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="One operation or choice of elements.")] = None,
    as_json: Json = False,
) -> None:
    """What can be done to a tensor, and to which of its elements: parameters and worked examples."""
    from planner.analysts.catalogue import elements_catalogue, operation_catalogue
    from planner.cli.console import Screen

    screen = Screen(as_json=as_json)
    operations, elements = operation_catalogue(), elements_catalogue()
    known = [entry["kind"] for entry in (*operations, *elements)]
    if kind is not None and kind not in known:
        raise UsageError(f"there is no operation {kind!r}", hint="there are " + ", ".join(known))
    screen.emit({"schema": "planner/operations@1", "operations": operations, "elements": elements})
    if kind is None:
        screen.show("operations (planner operations KIND shows parameters and examples):")
        for entry in operations:
            screen.prose(f"{entry['kind']}: {entry['meaning']}", indent=2)
        screen.show("elements of a target:")
        for choice in elements:
            screen.prose(f"{choice['kind']}: {choice['meaning']}", indent=2)
        return
    for entry in (*operations, *elements):
        if entry["kind"] == kind:
            screen.prose(f"{entry['kind']}: {entry['meaning']}", indent=0)
            for name, meaning in entry["parameters"].items():
                screen.prose(f"{name}: {meaning}", indent=2)
            for example in entry.get("examples", ()):
                screen.prose(f"example: {example}", indent=2)
