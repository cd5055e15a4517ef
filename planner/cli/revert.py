"""`planner revert`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from planner.cli.given import Json, ModelArgument


def command(
    model: ModelArgument,
    to: Annotated[
        int | None, typer.Option(min=0, help="Patch to go back to; 0 is the original. Default: undo one.")
    ] = None,
    low_space: Annotated[
        bool, typer.Option("--low-space", help="No second copy; MODEL has no name meanwhile.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take patches back, bit for bit."""
    from planner.checkpoint import locate
    from planner.cli.console import Screen
    from planner.cli.given import invoking_user
    from planner.transaction import revert

    screen = Screen(as_json=as_json)
    path = locate(model)
    left: list[str] = []
    with screen.change(path):
        with screen.progress("reverting") as bar:
            ledger = revert(path, to=to, by=invoking_user(), low_space=low_space, left=left.extend, progress=bar.step)
            screen.made()
        original = ledger.current.fingerprint == ledger.original.fingerprint
        screen.emit(
            {
                "schema": "planner/reverted@1",
                "path": str(path),
                "in_force": list(ledger.in_force),
                "fingerprint": ledger.current.fingerprint,
                "original_fingerprint": ledger.original.fingerprint,
                "original": original,
                "left_so": left,
            }
        )
        screen.show("in force: " + (", ".join(map(str, ledger.in_force)) or "no patch"))
        screen.show(f"now       {ledger.current.fingerprint}")
        screen.show(f"original  {ledger.original.fingerprint}" + ("  (the same)" if original else ""))
        if left:
            names = ", ".join(left)
            screen.show(f"not as the ledger says, and left so: {names}  (planner verify {shlex.quote(str(path))})")
