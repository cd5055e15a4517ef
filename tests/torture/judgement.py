"""Whether what a fault left keeps the promises: one state or the other, whole, before `recover` and after it.

Faults are counted by kind. `mixed`: neither the old state nor the new. `reserve`: one of them, but
for the room that a change in place keeps for its way back. `lost`: a command said that it had succeeded,
and its result is not there. `litter`: `recover` left something beside the model. `stuck`: the next command does not
work. `uncaught`: an error that is none of the planner's own, which a user would see as a traceback.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import act
from scenes import Scene
from worlds import Snapshot, difference, snapshot

__all__ = ["KINDS", "Tally", "judge", "state_of"]

KINDS = ("mixed", "reserve", "lost", "litter", "stuck", "uncaught")
RESERVE = ".planner/reserve"
_SHOWN = 12


@dataclass
class Tally:
    """What was tried, and what came of it."""

    points: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Faults by kind."""
    states: Counter[str] = field(default_factory=Counter)
    """How often each state was found before `recover`."""
    findings: list[str] = field(default_factory=list)
    """The first faults, in words."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Points not tried, by reason."""

    def add(self, other: Tally) -> None:
        """Count these as well."""
        self.points += other.points
        self.bad += other.bad
        self.states += other.states
        self.findings += other.findings
        self.skipped += other.skipped

    def fault(self, kind: str, said: str) -> None:
        """Count one fault."""
        self.bad[kind] += 1
        if sum(f.startswith(kind) for f in self.findings) < _SHOWN:
            self.findings.append(f"{kind}: {said}")


def state_of(scene: Scene, found: Snapshot | None) -> str:
    """Which state a folder is in: old, new, absent, or mixed."""
    if found == scene.old:
        return "old"
    if found == scene.new:
        return "new"
    return "absent" if found is None and scene.absent else "mixed"


def _but_for_reserve(
    tally: Tally, scene: Scene, found: Snapshot | None, said: str, *, given_up: bool = False
) -> Snapshot | None:
    """`found`; or the state that it would be, had it the right reserve, which is counted as a fault.

    Before recover it may be `given_up`: a revert in place begins so, for a full disk has no other room, and recover
    makes it again.
    """
    if found is not None and found not in (scene.old, scene.new):
        for meant in (scene.old, scene.new):
            if meant is not None and _without_reserve(found) == _without_reserve(meant):
                if not given_up:
                    tally.fault("reserve", f"{said}: {difference(found, meant)}")
                return meant
    return found


def _without_reserve(found: Snapshot) -> Snapshot:
    return {name: entry for name, entry in found.items() if name != RESERVE}


def judge(
    tally: Tally,
    scene: Scene,
    world: Path,
    said: str,
    *,
    status: int | None = None,
    detected: bool = False,
    again: bool = True,
    room: bool = True,
) -> None:
    """Judge `world` after a fault, and after `recover`; then run the command again where it left the old state.

    `status` is the exit status of the command, None if it was killed. With `detected`, a command that did not succeed
    must have left the old state. Without `room` on the disk, what was reserved there cannot be reserved again.
    """
    tally.points += 1
    try:
        os.chdir(world)
        _judge(tally, scene, world, f"{scene.name}, {said}", status, detected, again, room)
    finally:
        os.chdir("/")  # the world goes away


def _judge(
    tally: Tally,
    scene: Scene,
    world: Path,
    said: str,
    status: int | None,
    detected: bool,
    again: bool,
    room: bool,
) -> None:
    if status == act.FAILED:
        tally.fault("uncaught", said)
    found = _but_for_reserve(tally, scene, snapshot(scene.result(world)), said, given_up=True)
    state = state_of(scene, found)
    tally.states[state] += 1
    succeeded = status == act.SUCCESS
    if state == "mixed":
        tally.fault("mixed", f"{said}: {difference(found, scene.old)} (old); {difference(found, scene.new)} (new)")
    if state != "mixed" and succeeded and not _is(scene, found, "new"):
        tally.fault("lost", f"{said}: success, and the state is {state}")
    if detected and not succeeded and state == "new" and scene.new != scene.old:
        tally.fault("mixed", f"{said}: refused, and the state is new")

    recovered, words = act.perform("recover", world, None) if scene.verb.result == "model" else _recover(scene, world)
    if recovered != act.SUCCESS:
        tally.fault("stuck", f"{said}: recover: {words}")
        return
    after = _but_for_reserve(tally, scene, snapshot(scene.result(world)), f"{said}, after recover", given_up=not room)
    if after not in (scene.old, scene.new):
        tally.fault(
            "mixed", f"{said}: after recover {difference(after, scene.old)} (old); {difference(after, scene.new)} (new)"
        )
        return
    if state in ("old", "new") and state_of(scene, after) != state:
        tally.fault("mixed", f"{said}: recover turned the {state} state into the {state_of(scene, after)}")
    if scene.source is not None and snapshot(world / "model") != scene.source:
        tally.fault(
            "mixed", f"{said}: the model that was only read: {difference(snapshot(world / 'model'), scene.source)}"
        )
    _no_litter(tally, scene, world, said)
    if again:
        _again(tally, scene, world, said, after)


def _is(scene: Scene, found: Snapshot | None, state: str) -> bool:
    return found == (scene.new if state == "new" else scene.old) or (
        scene.verb.name == "recover" and found == scene.old
    )


def _recover(scene: Scene, world: Path) -> tuple[int, str]:
    from planner.errors import PlannerError
    from planner.transaction import recover

    os.chdir(world)
    try:
        recover(Path(scene.verb.result))
    except (PlannerError, OSError) as error:
        return act.FAILED, f"{type(error).__name__}: {error}"
    return act.SUCCESS, ""


def _no_litter(tally: Tally, scene: Scene, world: Path, said: str) -> None:
    left = set(os.listdir(world)) - {"model", scene.verb.result, "lost+found"}
    if left:
        tally.fault("litter", f"{said}: {', '.join(sorted(left))}")


def _again(tally: Tally, scene: Scene, world: Path, said: str, after: Snapshot | None) -> None:
    from planner.transaction import verify

    if after != scene.new:
        status, words = act.perform(scene.verb.name, world, scene.plan)
        if status != act.SUCCESS:
            tally.fault("stuck", f"{said}: again: {words}")
            return
        found = _but_for_reserve(tally, scene, snapshot(scene.result(world)), f"{said}, again")
        if found != scene.new and not (scene.verb.name == "recover" and found == scene.old):
            tally.fault("stuck", f"{said}: again: {difference(found, scene.new)}")
            return
        _no_litter(tally, scene, world, f"{said}, again")
    if not verify(Path(scene.verb.result)).sound:
        tally.fault("stuck", f"{said}: verify finds damage")
