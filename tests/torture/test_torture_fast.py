"""A minute of the torture, cut to what fits among the other tests; `torture.py` is the whole of it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import act
import controls
from crash_states import record, replay
from double_crashes import crashed_twice
from judgement import Tally
from random_plans import models_in, tried
from scenes import Scene, scenes_of
from strace_sweeps import KILL, Missing, counted, faults_of, swept, usable
from worlds import memory_folder


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is some."""
    here, mask = os.getcwd(), os.umask(0o022)
    found = memory_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANNER_CACHE", "/nowhere")
        yield found
    act.go_on()  # other tests run in this process
    os.chdir(here)
    os.umask(mask)
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture(scope="module")
def scenes(folder: Path) -> dict[str, Scene]:
    """By name."""
    return {scene.name: scene for scene in scenes_of(folder / "scenes", large=8)}


def _sound(tally: Tally, least: int) -> None:
    assert not tally.bad, "\n".join(tally.findings)
    assert tally.points >= least


@pytest.mark.parametrize("name", ["apply-out", "apply", "revert", "apply-low-space", "revert-low-space"])
def test_every_state_that_a_crash_may_leave_is_whole(name: str, scenes: dict[str, Scene], folder: Path) -> None:
    recording = record(scenes[name], folder / "world")
    _sound(replay(recording, folder / "world", share=(0, 16), again=20), 30)


@pytest.mark.parametrize("name", ["apply", "apply-low-space"])
def test_without_fsync_some_state_is_not_whole(name: str, scenes: dict[str, Scene], folder: Path) -> None:
    assert controls.unsynced(scenes[name], folder / "world", share=(0, 16)).bad["mixed"]


@pytest.mark.parametrize("name", ["apply", "revert-low-space"])
def test_a_second_kill_changes_nothing(name: str, scenes: dict[str, Scene], folder: Path) -> None:
    _sound(crashed_twice(scenes[name], folder, every=37), 40)


def test_a_commit_file_by_file_is_found_out(scenes: dict[str, Scene], folder: Path) -> None:
    assert controls.killed_by_file(scenes["apply"], folder / "world").bad["mixed"]


def test_a_real_kill_at_real_calls_changes_nothing(scenes: dict[str, Scene], folder: Path) -> None:
    try:
        usable()
        calls = counted(scenes["revert"], folder / "world")
    except Missing as missing:
        pytest.skip(str(missing))
    _sound(swept(scenes["revert"], faults_of(calls, KILL)[::4], folder / "world"), 20)


def test_wrong_bits_are_found_out_where_they_are_read_back(scenes: dict[str, Scene], folder: Path) -> None:
    _sound(controls.lied_to(scenes["revert"], folder / "world"), 10)
    assert controls.lied_to(scenes["revert"], folder / "world", reading=False).bad


def test_plans_drawn_by_chance_are_taken_back(folder: Path) -> None:
    _sound(tried(models_in(folder / "models", 4), range(20), folder / "world"), 20)
