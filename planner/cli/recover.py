"""`planner recover`."""

from __future__ import annotations

import shlex
from pathlib import Path

from planner.cli.given import Json, ModelArgument


def command(model: ModelArgument, as_json: Json = False) -> None:
    """Make MODEL whole after a command that was killed, and clean up. Of `apply --out DIR` that is DIR.

    Every other command that changes MODEL does so by itself, as long as MODEL has its name: a change with --low-space
    that was killed has moved it aside, and only this brings it back.
    """
    from planner.checkpoint import locate
    from planner.cli.console import Screen
    from planner.errors import NotACheckpoint
    from planner.transaction import left_beside, recover

    screen = Screen(as_json=as_json)
    try:
        path = locate(model)
    except NotACheckpoint:
        path = Path(model).absolute()  # an --out folder that was never finished has no name yet
        if not path.parent.is_dir():
            raise
    removed = recover(path)
    screen.emit({"schema": "planner/recovered@1", "path": str(path), "removed": [str(stage) for stage in removed]})
    for stage in removed:
        screen.show(f"cleaned up {stage}")
    if path.exists():
        screen.show(f"{path} is whole")
    elif removed:
        screen.show(f"{path} was never written")
    else:
        screen.show(f"there is no folder {path}, and nothing of it was left")
    for owner, names in left_beside(path).items():
        screen.say(f"beside it: {', '.join(names)}; `planner recover {shlex.quote(str(owner))}` cleans it up")
