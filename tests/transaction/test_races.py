"""Many processes at once: one writer wins, the others are told so, and the checkpoint is sound whatever they do."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from snapshots import MEMORY, approved_plan, change, files, litter, scale, small_model

from planner.checkpoint import fingerprint_checkpoint, open_checkpoint
from planner.errors import PlannerError
from planner.plan import Policy
from planner.transaction import apply_plan, read_ledger, recover, revert, verify

WRITERS, PLANS = 16, 50
Work = Callable[[int], object]

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a place."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


def at_once(count: int, work: Callable[[int, Any], list[int]]) -> list[list[int]]:
    """What `work` returns in each of so many processes, which are copies of this one; a barrier is given to them."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(count)
    pipes, children = [], []
    for number in range(count):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.write(writing, bytes(work(number, barrier)))
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        pipes.append(reading)
        children.append(child)
    found = []
    for reading, child in zip(pipes, children, strict=True):
        with os.fdopen(reading, "rb") as pipe:
            found.append(list(pipe.read()))
        assert os.waitpid(child, 0)[1] == 0
    return found


def status_of(action: Callable[[], object]) -> int:
    """The exit status that a command which does this would have; 77 for an error of the disk."""
    try:
        action()
    except PlannerError as error:
        return error.exit_status if error.exit_status != 7 or error.code == "file-in-use" else 77
    return 0


def tiny(folder: Path) -> Path:
    """Without tables, which take the longest of all where fifty patches are in force."""
    return small_model(folder, shards=1, dtype="F32")


def a_chain(model: Path, count: int) -> tuple[list[Any], Any]:
    """Plans for the model, each for what the one before makes of it; and the bytes that all of them make."""
    plans = []
    for number in range(count):
        edit = scale((2.0, 0.5)[number // 4 % 2], layers=str(number % 4))
        plans.append(approved_plan(model, edit, id=f"plan-{number}"))
        apply_plan(plans[-1], model, out=None, policy=Policy(), by="tester")
    return plans, files(model)


def test_of_sixteen_processes_exactly_one_applies_each_of_fifty_plans(folder: Path) -> None:
    plans, expected = a_chain(tiny(folder / "rehearsal" / "model"), PLANS)
    model = tiny(folder / "race" / "model")
    before = files(model)

    def work(number: int, barrier: Any) -> list[int]:
        statuses = []
        for plan in plans:
            barrier.wait(60)
            by = f"writer {number}"
            statuses.append(
                status_of(lambda plan=plan, by=by: apply_plan(plan, model, out=None, policy=Policy(), by=by))
            )
        return statuses

    found = at_once(WRITERS, work)
    for number in range(PLANS):
        statuses = Counter(mine[number] for mine in found)
        assert statuses[0] == 1, (number, statuses)
        assert statuses.keys() <= {0, 4, 8}, (number, statuses)
    ledger = read_ledger(model)
    assert ledger is not None
    assert [event.plan for event in ledger.events] == [plan.id for plan in plans]
    assert len({event.by for event in ledger.events}) > 1, "the race was none"
    assert files(model) == expected
    assert verify(model).sound
    assert litter(model.parent) == []
    revert(model, to=0, by="tester")
    assert files(model) == before


def test_of_sixteen_processes_exactly_one_writes_a_new_folder(folder: Path) -> None:
    model = small_model(folder / "model")
    plan, before = approved_plan(model, scale(2, layers="1")), files(model)
    change(model, scale(2, layers="1"), out=folder / "expected")

    def work(number: int, barrier: Any) -> list[int]:
        statuses = []
        for turn in range(10):
            barrier.wait(60)
            out = folder / f"out-{turn}"
            action = lambda out=out: apply_plan(plan, model, out=out, policy=Policy(), by="t")  # noqa: E731
            statuses.append(status_of(action))
        return statuses

    found = at_once(WRITERS, work)
    for turn in range(10):
        statuses = Counter(mine[turn] for mine in found)
        assert statuses[0] == 1, statuses
        assert statuses.keys() <= {0, 2, 8}, statuses
        assert files(folder / f"out-{turn}") == files(folder / "expected")
        assert verify(folder / f"out-{turn}").sound
    assert files(model) == before
    assert litter(folder) == []


def test_all_that_writes_at_once(folder: Path) -> None:
    """Apply, revert, recover and the recording of an evaluation: each takes its turn, or is told to wait."""
    from test_recorded_evaluation import an_evaluation

    from planner.transaction.evaluated import record_evaluation

    model = small_model(folder / "model")
    plans = [approved_plan(model, scale(2, layers="0"))]
    one = files(model)
    change(model, scale(2, layers="0"))
    two, patched = files(model), an_evaluation(fingerprint_checkpoint(open_checkpoint(model)))
    plans.append(approved_plan(model, scale(2, layers="1")))
    change(model, scale(2, layers="1"))
    three = files(model)
    revert(model, to=0, by="tester")
    succeeded = multiprocessing.get_context("fork").Array("i", 5)
    begun = time.monotonic()

    def goes_on() -> bool:
        passed = time.monotonic() - begun
        return passed < 1.5 or (passed < 30 and not all(succeeded))

    def work(number: int, barrier: Any) -> list[int]:
        actions: list[Callable[[], object]] = [
            lambda: apply_plan(plans[0], model, out=None, policy=Policy(), by="t"),
            lambda: apply_plan(plans[1], model, out=None, policy=Policy(), by="t", low_space=number > 3),
            lambda: revert(model, by="t", low_space=number > 3),
            lambda: recover(model),
            lambda: record_evaluation(model, patched, by="t"),
        ]
        statuses: Counter[int] = Counter()
        turn = number
        barrier.wait(60)
        while goes_on():
            status = status_of(actions[turn % 5])
            statuses[status] += 1
            succeeded[turn % 5] |= status == 0
            turn += 1
        return sorted(statuses)

    found = {status for mine in at_once(6, work) for status in mine}
    assert all(succeeded), "each of them succeeded somewhere"
    # 2: nothing to revert; 4: a stale plan; 7: another process had a file open that was to change in its place;
    # 8: locked; 9: at that moment the checkpoint had no name.
    assert found <= {0, 2, 4, 7, 8, 9}, found
    recover(model)
    assert files(model) in (one, two, three)
    assert verify(model).sound
    assert litter(folder) == []
    with suppress(PlannerError):
        revert(model, to=0, by="tester")
    assert files(model) == one
    assert open_checkpoint(model).tensors
