"""One writer at a time, each in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import run_forked
from snapshots import approved_plan, change, everything, files, litter, scale, small_model

from planner.errors import Locked, PlannerError
from planner.plan import Policy
from planner.transaction import apply_plan, read_ledger, recover, revert, state, verify

EDIT = scale(1.5, layers="0-1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


def _held_by_another_process(model: Path, out: Path | None) -> tuple[int, int]:
    """Start a process that applies and stops half-way; returns its number and a pipe that closes when it ends."""
    plan = approved_plan(model, EDIT)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)

        def stop(step: str, done: int, total: int) -> None:
            if step == "writing":
                os.write(writing, b"x")
                signal.pause()

        apply_plan(plan, model, out=out, policy=Policy(), by="first", progress=stop)
        os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"x"
    return child, reading


def _ended(child: int, reading: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("in_place", [False, True], ids=["out", "in-place"])
def test_a_second_writer_is_refused_and_told_who_the_first_is(model: Path, tmp_path: Path, in_place: bool) -> None:
    out = None if in_place else tmp_path / "out"
    target = model if out is None else out
    child, reading = _held_by_another_process(model, out)
    try:
        before = everything(tmp_path)
        commands: list[Callable[[], object]] = [lambda: change(model, EDIT, out=out), lambda: recover(target)]
        if in_place:
            commands.append(lambda: revert(model, by="second"))
        for command in commands:
            with pytest.raises(Locked, match=f"process {child}, ") as caught:
                command()
            assert caught.value.exit_status == 8
        assert everything(tmp_path) == before  # the stage of the first is not taken for a leftover
    finally:
        _ended(child, reading)
    # The lock of a killed process does not block, and its stage is removed.
    assert len(litter(tmp_path)) == 2
    change(model, EDIT, out=out)
    assert litter(tmp_path) == []
    assert verify(target).sound


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("gone", ["before", "meanwhile"])
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_what_a_writer_has_moved_away_is_no_fault_of_the_place(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, gone: str
) -> None:
    plan = approved_plan(model, EDIT)
    act: Callable[[], object] = {
        "apply": lambda: apply_plan(plan, model, out=None, policy=Policy(), by="second"),
        "revert": lambda: revert(model, by="second"),
    }[command]
    child, reading = _held_by_another_process(model, None)
    elsewhere, entries = tmp_path / "elsewhere", state._entries

    def moved(folder: Path) -> tuple[list[str], list[str]]:
        found = entries(folder)
        if not elsewhere.exists():
            model.rename(elsewhere)  # after its names were read
        return found

    if gone == "before":
        model.rename(elsewhere)
    monkeypatch.setattr(state, "_entries", moved)
    try:
        with pytest.raises(Locked, match=f"process {child}, "):
            act()
        assert elsewhere.exists()
    finally:
        _ended(child, reading)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_reader_and_a_writer_to_another_place_are_not_kept_waiting(model: Path, tmp_path: Path) -> None:
    child, reading = _held_by_another_process(model, None)
    try:
        assert verify(model).sound
        change(model, EDIT, out=tmp_path / "elsewhere")
    finally:
        _ended(child, reading)
    assert recover(model)
    assert litter(tmp_path) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("in_place", [False, True], ids=["out", "in-place"])
def test_of_eight_at_once_exactly_one_wins(model: Path, tmp_path: Path, in_place: bool) -> None:
    out = None if in_place else tmp_path / "out"
    plan = approved_plan(model, EDIT)
    change(model, EDIT, out=tmp_path / "expected", card=not in_place)
    reading, writing = os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            status = 99
            try:
                os.close(writing)
                os.read(reading, 1)  # all start when the pipe closes
                apply_plan(plan, model, out=out, policy=Policy(), by="racer")
                status = 0
            except PlannerError as error:
                status = error.exit_status
            finally:
                os._exit(status)
        children.append(child)
    os.close(writing)
    os.close(reading)
    statuses = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert statuses.count(0) == 1
    # Locked while the winner is at work; afterwards the plan is stale, or the output is there.
    assert set(statuses) <= {0, 8, 4 if in_place else 2}
    result = model if out is None else out
    assert files(result) == files(tmp_path / "expected")
    ledger = read_ledger(result)
    assert ledger is not None
    assert len(ledger.events) == 1
    assert verify(result).sound
    assert litter(tmp_path) == []


def test_recover_says_what_it_removed(model: Path, tmp_path: Path) -> None:
    stage = tmp_path / ".model.planner-stage-00000000"
    stage.mkdir()
    (stage / "half").write_text("x")
    other = tmp_path / ".model2.planner-stage-00000000"  # of another model
    other.mkdir()
    assert recover(model) == (stage,)
    assert recover(model) == ()
    assert litter(tmp_path) == [other.name]
    assert recover(tmp_path / "never-written") == ()


def test_names_with_the_signs_of_a_glob_are_taken_literally(tmp_path: Path) -> None:
    model = small_model(tmp_path / "mo[d]el*?")
    (tmp_path / ".mode.planner-stage-00000000").mkdir()
    stage = tmp_path / ".mo[d]el*?.planner-stage-00000000"
    stage.mkdir()
    assert recover(model) == (stage,)
    change(model, EDIT)
    assert litter(tmp_path) == [".mode.planner-stage-00000000"]


def test_a_child_that_fails_is_not_taken_for_one_that_works() -> None:
    """The tests above rest on exit statuses of child processes."""

    def fail() -> None:
        raise SystemExit

    assert run_forked(fail) == 1
    assert run_forked(lambda: None) == 0
