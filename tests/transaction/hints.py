"""What a hint says, done literally."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from planner.errors import PlannerError

__all__ = ["commands_in", "copied_as_said"]


def commands_in(error: PlannerError) -> list[str]:
    """The commands that a hint names, in its order."""
    return re.findall("`([^`]+)`", error.hint)


def copied_as_said(error: PlannerError) -> Path:
    """Carry out what a hint of `revert` says but for the revert itself; the copy that it is to be done in."""
    *steps, last = commands_in(error)[-1].split(" && ")
    subprocess.run(["bash", "-c", " && ".join(steps)], check=True)
    planner, revert, copy = shlex.split(last)
    assert (planner, revert) == ("planner", "revert")
    return Path(copy)
