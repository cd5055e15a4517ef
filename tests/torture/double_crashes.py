"""Killed, and killed again while what was left is cleared away or the command is repeated.

For every call of a verb at which it can be killed, every call of the `recover` that follows; and some calls of the same
verb run once more, which clears up before it begins.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import act
from disk import Dead, dead_at, installed, watched
from judgement import Tally, judge, state_of
from scenes import Scene, calls_of
from worlds import copied, snapshot

__all__ = ["crashed_twice"]


def crashed_twice(
    scene: Scene, folder: Path, *, every: int = 1, share: tuple[int, int] = (0, 1), most: int = 0
) -> Tally:
    """Judge every pair whose first kill is at every `every`-th call; `most` pairs, if it is not 0."""
    tally, world, left = Tally(), folder / "world", folder / "left"
    draw = random.Random(f"double {scene.name}")
    for number, first in enumerate(range(1, len(calls_of(scene, world)) + 1, every)):
        if number % share[1] != share[0]:
            continue
        copied(scene.template, left)
        _killed(lambda: act.perform(scene.verb.name, left, scene.plan), first)
        for name, act_again in _seconds(scene, world, left):
            copied(left, world)
            with installed(watched) as seen:
                act_again()
            calls = len(seen)
            # The verb itself is long: three calls of it, drawn.
            picked = (
                range(1, calls + 1) if name == "recover" else sorted(draw.sample(range(1, calls + 1), min(3, calls)))
            )
            for second in picked:
                if most and tally.points >= most:
                    return tally
                copied(left, world)
                _killed(act_again, second)
                said = f"killed at call {first}, then {name} killed at call {second}"
                judge(tally, scene, world, said, again=draw.random() < 0.05)
    return tally


def _seconds(scene: Scene, world: Path, left: Path) -> list[tuple[str, Callable[[], object]]]:
    """What may be run after the first kill."""
    from planner.transaction import recover

    found: list[tuple[str, Callable[[], object]]] = [("recover", lambda: recover(scene.result(world)))]
    if state_of(scene, snapshot(scene.result(left))) != "new":
        found.append(("the same", lambda: act.perform(scene.verb.name, world, scene.plan)))
    return found


def _killed(work: Callable[[], object], at: int) -> None:
    with suppress(Dead), installed(dead_at(at)):
        work()
