"""`--low-space`: what it needs, what is left of it when it is stopped, and what is shown meanwhile."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STOPPED = """
import os, signal, sys
from planner import fsio
from planner.cli import main

inner, count = fsio.{step}, 0

def stopped(*given, **named):
    global count
    count += 1
    if count == {number}:
        os.kill(os.getpid(), signal.{signal})
    return inner(*given, **named)

fsio.{step} = stopped
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in a process that gets a signal at the n-th call of a step of fsio."""

    def run(step: str, number: int, sent: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        script = tmp_path.with_name(f"{tmp_path.name}.py")
        script.write_text(STOPPED.format(step=step, number=number, signal=sent))
        words = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    return run


def test_it_is_for_a_change_in_place(planner, tiny_model, approved, tmp_path, everything):
    before = everything(tmp_path)
    result = planner("apply", approved, "--model", tiny_model, "--out", tmp_path / "out", "--low-space")
    assert result.status == 2
    assert "--low-space is for --in-place" in result.err
    assert planner("apply", approved, "--model", tiny_model, "--low-space").status == 2
    assert everything(tmp_path) == before


def test_there_and_back(planner, tiny_model, approved, tmp_path, everything):
    before = everything(tiny_model)
    assert planner("apply", approved, "--model", tiny_model, "--out", tmp_path / "expected", "--no-card").status == 0
    result = planner("apply", approved, "--model", tiny_model, "--in-place", "--low-space")
    assert result.status == 0, result.err
    last = result.err.splitlines()[-1]
    assert last == f"take it back: planner revert {tiny_model} --low-space"
    ours = {name: raw for name, raw in everything(tiny_model).items() if not name.startswith(".planner")}
    made = everything(tmp_path / "expected")
    assert ours == {name: raw for name, raw in made.items() if not name.startswith(".planner")}
    assert planner("verify", tiny_model).status == 0
    assert planner(*shlex.split(last.partition(": ")[2])[1:]).status == 0
    after = {name: raw for name, raw in everything(tiny_model).items() if not name.startswith(".planner")}
    assert after == before


POINTS = [("reserve_file", 1), ("publish_folder", 1), ("publish_folder", 2), ("overwrite", 1), ("overwrite", 2)]


@pytest.mark.parametrize(("step", "number"), [*POINTS, ("overwrite", 3), ("fsync_file", 2)])
def test_ctrl_c_leaves_the_old_state(planner, stopped, tiny_model, approved, tmp_path, everything, step, number):
    before = everything(tmp_path)
    command = ["apply", approved, "--model", tiny_model, "--in-place", "--low-space"]
    done = stopped(step, number, "SIGINT", *command)
    assert done.returncode == 130, done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error[interrupted]", "hint"]
    assert everything(tmp_path) == before
    done = planner(*command)
    assert done.status == 0, done.err


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_model_that_was_moved_aside_is_made_whole_by_the_command_that_is_named(
    planner, stopped, tiny_model, approved, tmp_path, everything, suite, verb
):
    other = tmp_path / "other"
    assert planner("apply", approved, "--model", tiny_model, "--out", other).status == 0
    command: list[Any] = ["apply", approved, "--model", tiny_model, "--in-place", "--low-space"]
    if verb == "revert":
        assert planner(*command).status == 0
        command = ["revert", tiny_model, "--low-space"]
    gate = suite(10)
    before = everything(tmp_path)
    assert stopped("overwrite", 3, "SIGKILL", *command).returncode == -signal.SIGKILL
    assert not tiny_model.exists()
    commands: list[list[Any]] = [
        ["profile", tiny_model],
        ["map", tiny_model],
        ["report", tiny_model, "--out", tmp_path / "x.html"],
        ["check", approved, "--model", tiny_model],
        ["review", approved, "--model", tiny_model],
        ["apply", approved, "--model", tiny_model, "--in-place"],
        ["apply", approved, "--model", tiny_model, "--out", tmp_path / "x"],
        ["log", tiny_model],
        ["verify", tiny_model],
        ["revert", tiny_model],
        ["export-patch", tiny_model, "--out", tmp_path / "x"],
        ["diff", other, tiny_model],
        ["evaluate", other, "--baseline", tiny_model, "--suite", gate],
        ["propose", tiny_model, "--goal", "g", "--out", tmp_path / "x"],
    ]
    for words in commands:
        result = planner(*words)
        assert result.status == 9, (words, result.err)
        assert "was being changed in its place" in result.err, words
        assert f"planner recover {tiny_model}" in result.err.splitlines()[-1], words
    named = re.search(r"`(planner [^`]+)`", result.err.splitlines()[-1])
    assert named
    result = planner(*shlex.split(named[1])[1:])
    assert result.status == 0, result.err
    assert f"{tiny_model} is whole" in result.out
    if verb == "revert":  # it went on, or back: both are whole
        assert planner("verify", tiny_model).status == 0
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    else:
        assert everything(tmp_path) == before
    assert planner("verify", tiny_model).status == 0
    if verb == "apply":
        assert planner(*command).status == 0


@pytest.mark.parametrize("low_space", [False, True], ids=["in-place", "low-space"])
def test_a_terminal_sees_the_bytes_and_the_time_left(tiny_model, approved, low_space):
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "planner", "apply", approved, "--model", tiny_model, "--in-place"]
    process = subprocess.Popen(
        [*map(str, words), *(["--low-space"] if low_space else [])],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "150"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            more = os.read(ours, 2**16)
        except OSError:  # what Linux answers when nobody has the other end any more
            break
        if not more:
            break
        seen += more
    os.close(ours)
    assert process.wait(60) == 0, seen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"[\d.]+/[\d.]+ (bytes|[kM]B)", text), text
    assert re.search(r"\d:\d\d:\d\d left (\d+:\d\d:\d\d|-:--:--)", text), text
    assert any(step in text for step in ("hashing", "writing", "proving", "overwriting", "verifying")), text
    assert "take it back: planner revert" in text
