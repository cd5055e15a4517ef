"""The commands under test, as functions and as a program: `python act.py WORLD VERB PLAN`.

The program imports what these commands need and no more, and does what the command line does: 0 for success, 10 where
the planner refuses or says what is wrong, 11 for an error that nobody caught. What the clock says goes into ledgers and
receipts, so it stands still here: two runs of one verb give the same bytes.
"""

from __future__ import annotations

import datetime as clock
import hashlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FAILED", "REFUSED", "SUCCESS", "VERBS", "Verb", "perform", "still"]

SUCCESS, REFUSED, FAILED = 0, 10, 11


class _Stopped(clock.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> _Stopped:
        return cls(2026, 1, 1, tzinfo=tz)


def still() -> None:
    """Stop the clock of the planner; keep no profile on the disk, as that depends on the age of files, but in memory.

    Two things that only read are made short, for they take longer than all that is under test here: the profile of a
    checkpoint is made once, and whether another process has a file open is not asked of every process there is. What
    goes through the slot of a change in place at once is made small, so that it goes there several times.
    """
    import planner.transaction
    from planner.profile import store

    assert planner.transaction
    _set(store, "SETTLED_NS", 10**18)
    for name, module in list(sys.modules.items()):
        if name.startswith("planner.transaction"):
            for attribute, value in _STANDING_IN.items():
                if hasattr(module, attribute):
                    _set(module, attribute, value)
        if name.startswith("planner") and getattr(module, "datetime", None) is clock.datetime:
            _set(module, "datetime", _Stopped)


_as_it_was: list[tuple[Any, str, Any]] = []


def _set(module: Any, attribute: str, value: Any) -> None:
    _as_it_was.append((module, attribute, getattr(module, attribute)))
    setattr(module, attribute, value)


def go_on() -> None:
    """Undo `still`, for whatever else this process is to do."""
    while _as_it_was:
        module, attribute, value = _as_it_was.pop()
        setattr(module, attribute, value)


_profiles: dict[bytes, Any] = {}


def _profile_of(checkpoint: Any, **options: Any) -> Any:
    from planner.profile import profile_of

    try:
        files = sorted(path for path in checkpoint.path.iterdir() if path.is_file())
        key = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).digest()
    except OSError:  # a fault that was put in; the planner is to meet it as well
        return profile_of(checkpoint, **options)
    if key not in _profiles:
        _profiles[key] = profile_of(checkpoint, **options)
    return _profiles[key]


_STANDING_IN = {"profile_of": _profile_of, "_PROC": Path("/nowhere"), "CHUNK": 1}


@dataclass(frozen=True)
class Verb:
    """One command."""

    name: str
    act: Callable[[Any], object]
    """Does it in the current folder, with a plan."""
    result: str = "model"
    """The folder that it writes."""
    patches: int = 0
    """Patches in force before."""
    planned: bool = True
    """Whether it takes a plan."""
    low_space: bool = False
    """Whether the model may be absent in the middle, until `recover` has been run."""

    @property
    def there(self) -> bool:
        """Whether this version of the planner has it."""
        from planner.transaction import apply_plan, revert

        wanted = [function for function in (apply_plan, revert) if self.low_space]
        return all("low_space" in inspect.signature(function).parameters for function in wanted)


def _apply(plan: Any, *, out: str | None = None, **options: Any) -> object:
    from planner.plan import Policy
    from planner.transaction import apply_plan

    return apply_plan(plan, Path("model"), out=Path(out) if out else None, policy=Policy(), by="tester", **options)


def _revert(plan: Any, **options: Any) -> object:
    from planner.transaction import revert

    return revert(Path("model"), to=0, by="tester", **options)


def _recover(plan: Any) -> object:
    from planner.transaction import recover

    return recover(Path("model"))


VERBS = {
    verb.name: verb
    for verb in (
        Verb("apply-out", lambda plan: _apply(plan, out="out"), result="out"),
        Verb("apply", _apply, patches=1),
        Verb("revert", _revert, patches=2, planned=False),
        Verb("apply-low-space", lambda plan: _apply(plan, low_space=True), patches=1, low_space=True),
        Verb("revert-low-space", lambda plan: _revert(plan, low_space=True), patches=2, planned=False, low_space=True),
        Verb("recover", _recover, planned=False),
    )
}


def perform(verb: str, world: Path, plan: Any) -> tuple[int, str]:
    """Do it in `world`; the exit status, and what was said. What is no `Exception`, such as a kill, goes through."""
    from planner.errors import PlannerError

    try:
        os.chdir(world)
        VERBS[verb].act(plan)
    except PlannerError as error:
        return REFUSED, f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - what nobody caught is what is asked for
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "planner" in frame.filename]
        where = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return FAILED, f"{type(error).__name__}: {error}{where}"
    return SUCCESS, ""


def main(world: str, verb: str, plan: str) -> int:
    """The program."""
    from planner.plan import read_plan

    still()
    read = read_plan(Path(plan).read_text()) if VERBS[verb].planned else None
    return perform(verb, Path(world), read)[0]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
