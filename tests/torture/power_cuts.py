"""The power goes, on a real ext4: what had not reached the disk is lost, at every call of a verb in turn.

Three ways to mount it, from the usual one to the one that keeps least; each as it is, and after somebody else's fsync
has written out the journal, with the names in it, but not our bytes. A verb that had said that it succeeded must have
its result there afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import act
from crash_states import without_fsync
from disk import installed, leave_at
from judgement import Tally, judge
from mounts import cut_the_power, mounted, new_image, private
from scenes import Scene, calls_of
from strace_sweeps import Missing
from worlds import copied

__all__ = ["MODES", "Cut", "cut", "cuts_of", "under_eatmydata"]

MODES = ("data=ordered", "noauto_da_alloc", "data=writeback,noauto_da_alloc")
NEVER = 10**9


@dataclass(frozen=True)
class Cut:
    """One power cut."""

    options: str
    """How the disk is mounted."""
    at: int
    """Before which call; `NEVER` for after the last one."""
    journal: bool
    """Whether somebody else's fsync has written out the journal before."""

    def __str__(self) -> str:
        when = "after the end" if self.at == NEVER else f"before call {self.at}"
        return f"power cut {when}, {self.options}{', the journal written out' if self.journal else ''}"


def cuts_of(scene: Scene, folder: Path, *, every: int = 1) -> list[Cut]:
    """At every `every`-th call and after the last one, in every mode; each mode begins at another call."""
    count = len(calls_of(scene, folder / "count"))
    found = []
    for number, (options, journal) in enumerate((options, journal) for options in MODES for journal in (False, True)):
        places = [*range(1 + number % every, count + 1, every), NEVER]
        found += [Cut(options, at, journal) for at in places]
    return found


def cut(scene: Scene, cuts: list[Cut], folder: Path, *, synced: bool = True, again: int = 8) -> Tally:
    """Judge them all. With `synced` False, a control: fsync does nothing."""
    tally, image = Tally(), folder / "work.img"
    base = _base(scene, folder)
    for number, power_cut in enumerate(cuts):
        subprocess.run(["cp", "--sparse=always", base, image], check=True)
        with mounted(image, folder / "disk", power_cut.options) as disk:
            status = _in_child(scene, disk / "world", power_cut.at, synced)
            _go_dark(disk, power_cut)
        _look(tally, scene, image, folder, power_cut, status, number % again == 0)
    return tally


def under_eatmydata(scene: Scene, folder: Path) -> Tally:
    """A control: the command as it is, under the library that makes fsync do nothing, and the power cut after it."""
    if shutil.which("eatmydata") is None:
        raise Missing("eatmydata is not installed")
    tally, image, plan = Tally(), folder / "work.img", folder / "plan.json"
    base = _base(scene, folder)
    if scene.plan is not None:
        from planner.plan import write_plan

        plan.write_bytes(write_plan(scene.plan))
    for options in MODES:
        power_cut = Cut(options, NEVER, journal=False)
        subprocess.run(["cp", "--sparse=always", base, image], check=True)
        with mounted(image, folder / "disk", options) as disk:
            program = [sys.executable, Path(act.__file__), disk / "world", scene.verb.name, plan]
            done = subprocess.run(["eatmydata", *map(str, program)], check=False, capture_output=True)
            if done.returncode != act.SUCCESS:
                raise RuntimeError(f"{scene.name} under eatmydata: {done.stderr.decode()[-300:]}")
            _go_dark(disk, power_cut)
        _look(tally, scene, image, folder, power_cut, act.SUCCESS, again=False)
    return tally


def _base(scene: Scene, folder: Path) -> Path:
    """The image that every cut begins with."""
    private()
    base = new_image(folder / "base.img")
    with mounted(base, folder / "disk", "defaults") as disk:
        copied(scene.template, disk / "world")
    return base


def _in_child(scene: Scene, world: Path, at: int, synced: bool) -> int | None:
    """Run the verb in a process that ends before call `at`; its status if it came to its end."""
    child = os.fork()
    if child == 0:
        status = 12
        try:
            with nullcontext() if synced else without_fsync(), installed(leave_at(at)):
                status = act.perform(scene.verb.name, world, scene.plan)[0]
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if status == 137 else status


def _go_dark(disk: Path, power_cut: Cut) -> None:
    if power_cut.journal:
        with open(disk / "other", "wb") as file:
            file.write(b"y")
            os.fsync(file.fileno())
    cut_the_power(disk)


def _look(
    tally: Tally, scene: Scene, image: Path, folder: Path, power_cut: Cut, status: int | None, again: bool
) -> None:
    try:
        with mounted(image, folder / "disk", power_cut.options) as disk:
            judge(tally, scene, disk / "world", str(power_cut), status=status, again=again)
    except OSError as error:  # the file system itself is broken where nothing was fsynced
        tally.fault("mixed", f"{scene.name}, {power_cut}: {error}")
