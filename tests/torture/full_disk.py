"""A disk that is really full: a small folder in memory that somebody else fills at every call of a verb.

Before the verb begins there was room, so it starts; then there is none, or a page or a few. Whatever it does, the old
state or the new one is there, and `recover` works while the disk is still full.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import act
from disk import installed
from judgement import Tally, judge
from mounts import private, tmpfs
from scenes import Scene, calls_of
from worlds import copied

__all__ = ["filled"]

_PAGE = 4096
_LEFT = (0, 1, 5)
"""Pages that are left."""


def filled(scene: Scene, folder: Path, *, every: int = 1, share: tuple[int, int] = (0, 1)) -> Tally:
    """Fill the disk at every `every`-th call."""
    private()
    tally = Tally()
    count = len(calls_of(scene, folder / "count"))
    points = [(at, left) for left in _LEFT for at in range(1 + left % every, count + 1, every)]
    with tmpfs(folder / "full", 8 * 2**20) as disk:
        for number, (at, left) in enumerate(points):
            if number % share[1] == share[0]:
                _one(tally, scene, disk, at, left, again=number % 6 == 0)
    return tally


def _one(tally: Tally, scene: Scene, disk: Path, at: int, left: int, *, again: bool) -> None:
    filler, world = disk / "filler", copied(scene.template, disk / "world")

    def hook(number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if number == at:
            _fill(filler, left)
        return real(*arguments)

    with installed(hook):
        status, _ = act.perform(scene.verb.name, world, scene.plan)
    said = f"the disk is full from call {at} on, but for {left} pages"
    judge(tally, scene, world, said, status=status, again=False, room=False)
    filler.unlink()
    if again:
        then = Tally()
        judge(then, scene, world, f"{said}, then there is room again", again=True)
        tally.bad += then.bad
        tally.findings += then.findings


def _fill(filler: Path, left: int) -> None:
    room = os.statvfs(filler.parent)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, (room.f_bavail - left) * room.f_frsize))
