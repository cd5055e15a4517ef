"""What the torture is made of: sections, and the jobs of each, which run side by side.

A job is one scene, or a share of it, and says what came of it. A section knows what it needs of the machine, and how
many points are missing where that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import controls
import strace_sweeps
from crash_states import record, replay
from double_crashes import crashed_twice
from full_disk import filled
from judgement import Tally
from mounts import require_loop, require_root
from power_cuts import cut, cuts_of, under_eatmydata
from random_plans import models_in, tried
from scenes import Scene, calls_of
from strace_sweeps import KILL, READ_ERRORS, READING, counted, faults_of, lies_of, shortened, swept

__all__ = ["Section", "controls_of", "sections_of"]

Job = Callable[[Path], Tally]
"""Gets a folder of its own."""
PLANS = 1000
_SHARES = 4


@dataclass
class Section:
    """A part of the torture."""

    name: str
    jobs: list[Job] = field(default_factory=list)
    needs: Callable[[Path], None] = lambda folder: None
    """Raises `Missing`."""
    planned: Callable[[Path], int] = lambda folder: 0
    """How many points there would be, asked only where something is missing."""


def sections_of(scenes: list[Scene], folder: Path) -> Iterator[Section]:
    """All of them, in the order to run them."""
    verbs = [scene for scene in scenes if scene.verb.name != "recover"]
    yield Section("crash states", [_shared(_replayed, scene, share) for scene in scenes for share in _shares()])
    yield Section("kills by strace", [_put_in(scene, KILL) for scene in scenes], _strace, _calls(scenes, 1))
    errors = [_put_in(scene, (what,)) for what in strace_sweeps.ERRORS for scene in scenes]
    yield Section("ENOSPC and EIO by strace", errors, _strace, _calls(scenes, len(strace_sweeps.ERRORS)))
    reading = [_put_in(scene, READ_ERRORS, READING) for scene in scenes]
    yield Section("EIO on reading, by strace", reading, _strace, _calls(scenes, 1))
    yield Section("lying writes by strace", [_lied(scene) for scene in scenes], _strace, _calls(scenes, 1))
    altered = [_in_world(controls.lied_to, scene) for scene in verbs]
    yield Section("short and altered writes", [*altered, *(_in_world(shortened, scene) for scene in scenes)])
    twice = [_shared(_twice, scene, share) for scene in scenes for share in _shares()]
    yield Section("double crashes", twice)
    power = [_shared(_cut, scene, share) for scene in scenes for share in _shares()]
    yield Section(
        "power cuts", power, require_loop, lambda at: sum(len(cuts_of(scene, at, every=3)) for scene in scenes)
    )
    full = [_shared(_filled, scene, share) for scene in scenes for share in _shares()]
    yield Section("full disk", full, lambda at: require_root(), _calls(scenes, 3))
    models = models_in(folder)
    chance = [_tried(models, range(first, first + 50)) for first in range(0, PLANS, 50)]
    yield Section("random plans", chance, planned=lambda at: PLANS)


def controls_of(scenes: list[Scene]) -> Iterator[Section]:
    """Each of these must come out bad."""
    verbs = [scene for scene in scenes if scene.verb.name != "recover"]
    switched = [scene for scene in verbs if not scene.verb.low_space]
    by_file = [_in_world(controls.killed_by_file, scene) for scene in switched]
    yield Section("one rename a file", by_file)
    unsynced = [_shared(_unsynced, scene, (share, 8)) for scene in verbs for share in range(2)]
    yield Section("no fsync, crash states", unsynced)
    dark = [_shared(_cut_unsynced, scene, share) for scene in verbs for share in _shares()]
    yield Section(
        "no fsync, power cuts", dark, require_loop, lambda at: sum(len(cuts_of(s, at, every=12)) for s in verbs)
    )
    eaten = [_one(under_eatmydata, scene) for scene in verbs]
    yield Section("eatmydata, power cuts", eaten, _eatmydata, lambda at: 3 * len(verbs))
    believed = [lambda at, scene=scene: controls.lied_to(scene, at / "world", reading=False) for scene in switched]
    yield Section("no reading back, altered writes", believed)


def _shares() -> list[tuple[int, int]]:
    return [(number, _SHARES) for number in range(_SHARES)]


def _shared(work: Callable[[Scene, Path, tuple[int, int]], Tally], scene: Scene, share: tuple[int, int]) -> Job:
    return lambda folder: work(scene, folder, share)


def _one(work: Callable[[Scene, Path], Tally], scene: Scene) -> Job:
    return lambda folder: work(scene, folder)


def _in_world(work: Callable[[Scene, Path], Tally], scene: Scene) -> Job:
    return lambda folder: work(scene, folder / "world")


def _replayed(scene: Scene, folder: Path, share: tuple[int, int]) -> Tally:
    return replay(record(scene, folder / "world"), folder / "world", share=share, again=20)


def _unsynced(scene: Scene, folder: Path, share: tuple[int, int]) -> Tally:
    return controls.unsynced(scene, folder / "world", share=share)


def _put_in(scene: Scene, whats: tuple[str, ...], calls: str = strace_sweeps.CALLS) -> Job:
    def job(folder: Path) -> Tally:
        world = folder / "world"
        return swept(scene, faults_of(counted(scene, world, calls), whats), world, again=10)

    return job


def _lied(scene: Scene) -> Job:
    return lambda folder: swept(scene, lies_of(counted(scene, folder / "world")), folder / "world", again=10)


def _twice(scene: Scene, folder: Path, share: tuple[int, int]) -> Tally:
    return crashed_twice(scene, folder, every=3, share=share)


def _cut(scene: Scene, folder: Path, share: tuple[int, int]) -> Tally:
    return cut(scene, cuts_of(scene, folder, every=3)[share[0] :: share[1]], folder)


def _cut_unsynced(scene: Scene, folder: Path, share: tuple[int, int]) -> Tally:
    return cut(scene, cuts_of(scene, folder, every=12)[share[0] :: share[1]], folder, synced=False, again=10**9)


def _filled(scene: Scene, folder: Path, share: tuple[int, int]) -> Tally:
    return filled(scene, folder, share=share)


def _tried(models: list, seeds: range) -> Job:  # type: ignore[type-arg]
    return lambda folder: tried(models, seeds, folder / "world")


def _strace(folder: Path) -> None:
    strace_sweeps.usable()


def _eatmydata(folder: Path) -> None:
    require_loop(folder)
    if strace_sweeps.shutil.which("eatmydata") is None:
        raise strace_sweeps.Missing("eatmydata is not installed")


def _calls(scenes: list[Scene], times: int) -> Callable[[Path], int]:
    return lambda folder: times * sum(len(calls_of(scene, folder / "world")) for scene in scenes)
