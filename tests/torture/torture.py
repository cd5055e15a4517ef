"""Torture: every way to stop, starve or deceive a transaction, at every place, and whether the model is whole after it.

`python tests/torture/torture.py [--only SECTION] [--json FILE]`; `make torture` runs all of it, in less than 20 minutes
on two cores. A line for each section as it ends, a table at the end; exit status 1 if a promise was broken anywhere,
or if a control, in which the planner is made to do what it must not, was NOT found out. What the machine has not
(root, strace, loop devices) is said, and what was skipped is counted.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
for _name in ("PLANNER_CACHE", "PLANNER_STATE"):
    os.environ[_name] = "/nowhere"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from judgement import KINDS, Tally  # noqa: E402
from scenes import scenes_of  # noqa: E402
from sections import Section, controls_of, sections_of  # noqa: E402
from strace_sweeps import Missing  # noqa: E402
from worlds import memory_folder  # noqa: E402

__all__ = ["Result", "main", "ran"]

_PR_SET_PDEATHSIG = 1
_jobs: list[Any] = []
_folder = Path()


@dataclass
class Result:
    """What came of a section."""

    name: str
    control: bool
    tally: Tally
    seconds: float

    @property
    def right(self) -> bool:
        """Whether it is as it should be: nothing bad; for a control, something bad. What is skipped is not wrong."""
        bad = bool(self.tally.bad)
        return (bad if self.control else not bad) if self.tally.points else bool(self.tally.skipped)

    def __str__(self) -> str:
        tally = self.tally
        name = f"control: {self.name}" if self.control else self.name
        counts = " ".join(f"{tally.bad[kind]:>8}" for kind in KINDS)
        verdict = (
            ("found out" if self.control else "ok") if self.right else ("NOT FOUND OUT" if self.control else "BAD")
        )
        skipped = "; ".join(f"{count} skipped: {reason}" for reason, count in tally.skipped.items())
        verdict = "skipped" if not tally.points else verdict
        return f"{name:<36} {tally.points:>6} {counts} {self.seconds:>7.1f}  {verdict}{'  ' * bool(skipped)}{skipped}"


HEADING = f"{'':<36} {'points':>6} {' '.join(f'{kind:>8}' for kind in KINDS)} {'seconds':>7}"


def ran(section: Section, folder: Path, *, control: bool, processes: int) -> Result:
    """Run the jobs of a section, side by side."""
    global _jobs, _folder
    begun, tally = time.monotonic(), Tally()
    own = folder / "needs"
    own.mkdir(exist_ok=True)
    try:
        _in_child(section.needs, own)
    except Missing as missing:
        tally.skipped[str(missing)] = section.planned(own)
        return Result(section.name, control, tally, time.monotonic() - begun)
    _jobs, _folder = section.jobs, folder
    try:
        with multiprocessing.get_context("fork").Pool(processes, _begin) as pool:
            for part in pool.imap_unordered(_work, range(len(section.jobs))):
                tally.add(part)
    except KeyboardInterrupt:
        print(f"stopped in {section.name} after {tally.points} points", *tally.findings, sep="\n  ", file=sys.stderr)
        raise
    return Result(section.name, control, tally, time.monotonic() - begun)


def _in_child(needs: Any, folder: Path) -> None:
    """Ask in a process of its own: the answer may take a mount namespace. Raises `Missing`."""
    with multiprocessing.get_context("fork").Pool(1, _begin) as pool:
        pool.apply(
            _ask, (needs.__module__, needs.__qualname__, folder)
        ) if "<lambda>" not in needs.__qualname__ else needs(folder)


def _ask(module: str, name: str, folder: Path) -> None:
    getattr(sys.modules[module], name)(folder)


def _begin() -> None:
    """A worker ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _work(number: int) -> Tally:
    own = _folder / f"worker-{os.getpid()}"
    own.mkdir(exist_ok=True)
    try:
        tally: Tally = _jobs[number](own)
    except Exception as error:  # noqa: BLE001 - one broken job must not end the others
        tally = Tally(points=1)
        tally.fault("stuck", f"job {number}: the harness failed: {type(error).__name__}: {error}")
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help="sections whose name has this in it")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = memory_folder()
    results: list[Result] = []
    try:
        begun = time.monotonic()
        scenes = scenes_of(folder / "scenes", large=8)
        print(f"{len(scenes)} scenes made in {time.monotonic() - begun:.0f} s\n{HEADING}", flush=True)
        for control, listed in ((False, sections_of(scenes, folder)), (True, controls_of(scenes))):
            for section in listed:
                if options.only is None or options.only in f"{'control: ' * control}{section.name}":
                    results.append(ran(section, folder, control=control, processes=options.processes))
                    print(results[-1], flush=True)
        took = time.monotonic() - begun
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _say(results, took)
    if options.json:
        options.json.write_text(json.dumps([_figures(result) for result in results], indent=1) + "\n")
    return 0 if results and all(result.right for result in results) else 1


def _say(results: list[Result], took: float) -> None:
    for result in results:
        if not result.right:
            print(f"\n{result.name}:", *result.tally.findings[:40], sep="\n  ")
    real = [result for result in results if not result.control]
    points, skipped = sum(r.tally.points for r in real), sum(sum(r.tally.skipped.values()) for r in results)
    bad = sum(sum(r.tally.bad.values()) for r in real)
    found = sum(r.right for r in results if r.control and r.tally.points)
    there = sum(1 for r in results if r.control and r.tally.points)
    print(f"\n{points:,} points, {bad:,} bad, {skipped:,} skipped; {found} of {there} controls found out; {took:.0f} s")


def _figures(result: Result) -> dict[str, Any]:
    tally = result.tally
    return {
        "section": result.name,
        "control": result.control,
        "right": result.right,
        "points": tally.points,
        "bad": dict(tally.bad),
        "states": dict(tally.states),
        "skipped": dict(tally.skipped),
        "seconds": round(result.seconds, 1),
        "findings": tally.findings,
    }


if __name__ == "__main__":
    sys.exit(main())
