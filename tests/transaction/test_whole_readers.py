"""Readers beside a writer: each sees the old state or the new one, whole, or is told that it saw neither."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from snapshots import MEMORY, approved_plan, change, scale, small_model

from planner.checkpoint import Checkpoint, fingerprint_checkpoint, open_checkpoint
from planner.checkpoint.header import open_regular
from planner.errors import FileUnreadable, NotACheckpoint, PlannerError
from planner.plan import Policy
from planner.transaction import apply_plan, recover, revert

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SECONDS = 2.5
TOLD = {"FileUnreadable", "NotACheckpoint"}


@pytest.fixture
def model() -> Iterator[Path]:
    """Three shards of one tensor each or two, which a plan for all of them changes; in memory, where that is."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield small_model(Path(name) / "model", shards=3)


def forked(work: Callable[[], Any]) -> tuple[int, int]:
    """A process that does it; and the end of a pipe that gives its result as JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            os.write(writing, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def result(child: int, reading: int) -> Any:
    """What such a process found."""
    with os.fdopen(reading, "rb") as pipe:
        raw = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(raw)


@contextmanager
def written_to_and_fro(model: Path, *, low_space: bool) -> Iterator[None]:
    """A process applies and reverts all the time."""
    plan = approved_plan(model, scale(2, layers="0-3"))

    def write() -> None:
        while True:
            for action in (
                lambda: apply_plan(plan, model, out=None, policy=Policy(), by="writer", low_space=low_space),
                lambda: revert(model, by="writer", low_space=low_space),
            ):
                while True:
                    try:
                        action()
                        break
                    except PlannerError as error:
                        assert error.code == "file-in-use"  # noqa: PT017 - it is tried again

    child, reading = forked(write)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        recover(model)


def read(model: Path, seconds: float, pause: float = 0.0) -> dict[str, int]:
    """Read all of it again and again; how often which fingerprint was found, or which error."""
    found: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    real = Checkpoint.open_shard

    def slow(self: Checkpoint, shard: str) -> int:
        time.sleep(pause)
        return real(self, shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "open_shard", slow)
        while time.monotonic() < ends:
            try:
                found[fingerprint_checkpoint(open_checkpoint(model))] += 1
            except (FileUnreadable, NotACheckpoint) as error:
                found[type(error).__name__] += 1
            except PlannerError as error:
                found[f"wrong: {type(error).__name__}"] += 1
    return dict(found)


def states(model: Path) -> set[str]:
    """Both fingerprints."""
    old = fingerprint_checkpoint(open_checkpoint(model))
    change(model, scale(2, layers="0-3"))
    new = fingerprint_checkpoint(open_checkpoint(model))
    revert(model, by="tester")
    assert old != new
    return {old, new}


@pytest.mark.parametrize("low_space", [False, True], ids=["in-place", "low-space"])
def test_readers_see_one_state_or_the_other(model: Path, low_space: bool) -> None:
    both = states(model)
    with written_to_and_fro(model, low_space=low_space):
        pauses = (0.0, 0.002, 0.005)
        readers = [forked(lambda pause=pause: read(model, SECONDS, pause)) for pause in pauses]
        found: Counter[str] = Counter()
        for reader in readers:
            found.update(result(*reader))
    assert both <= found.keys(), found
    assert found.keys() <= both | TOLD, found


def test_without_the_check_of_identity_a_mixture_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the test above can see what it looks for."""
    both = states(model)

    def unchecked(self: Checkpoint, shard: str) -> int:
        return open_regular(self.path / shard)

    monkeypatch.setattr(Checkpoint, "open_shard", unchecked)
    with written_to_and_fro(model, low_space=False):
        found = result(*forked(lambda: read(model, SECONDS, 0.005)))
    assert found.keys() - both - TOLD, found


def test_who_opened_it_before_a_change_is_told(model: Path) -> None:
    opened = open_checkpoint(model)
    change(model, scale(2, layers="0-3"))
    with pytest.raises(FileUnreadable, match="was changed while it was read"):
        fingerprint_checkpoint(opened)


def test_a_change_in_place_waits_for_no_reader_and_says_who_it_is(model: Path) -> None:
    """A reader of another process would see bytes change under it: nothing is begun while it has a shard open."""
    plan = approved_plan(model, scale(2, layers="0-3"))
    fork = multiprocessing.get_context("fork")
    opened, done = fork.Event(), fork.Event()

    def hold() -> None:
        with next(model.glob("*.safetensors")).open("rb"):
            opened.set()
            done.wait(30)

    child = fork.Process(target=hold)
    child.start()
    try:
        assert opened.wait(30)
        before = fingerprint_checkpoint(open_checkpoint(model))
        with pytest.raises(PlannerError, match=f"process {child.pid} ") as caught:
            apply_plan(plan, model, out=None, policy=Policy(), by="t", low_space=True)
        assert caught.value.code == "file-in-use"
        assert fingerprint_checkpoint(open_checkpoint(model)) == before
    finally:
        done.set()
        child.join(30)
    apply_plan(plan, model, out=None, policy=Policy(), by="t", low_space=True)
