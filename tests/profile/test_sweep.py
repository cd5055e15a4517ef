"""The sweep: the same digits from any number of threads, and no thread left behind, whatever goes wrong."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_checkpoint, write_shard

from planner.checkpoint import Checkpoint, Tensor, TensorReader, digest_bytes, open_checkpoint
from planner.errors import FileUnreadable, ShardTruncated
from planner.profile import profile_checkpoint, sweep
from planner.profile.sweep import Task
from planner.profile.tallies import narrow, wide

WORKERS = [1, 2, 8]


@pytest.fixture(autouse=True)
def _no_deadlock() -> Iterator[None]:
    """A test that hangs says where and ends the run."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert alive() == []


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sweep-")]


def stored(shape: tuple[int, ...], size: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 2 ** (8 * size), shape, dtype=f"<u{size}")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Tensors of every kind, one of them far larger than the others, so that threads must help each other."""
    tensors = {
        "small": ("I8", stored((30,), 1, 0)),
        "half": ("BF16", stored((37, 11), 2, 1)),
        "other_half": ("F16", stored((16, 9), 2, 2)),
        "empty": ("F32", stored((0, 4), 4, 3)),
        "odd": ("F8_E4M3", stored((61, 3), 1, 4)),
        "wide": ("F32", np.random.default_rng(5).normal(0, 1, (53, 21)).astype("<f4").view("<u4")),
        "integers": ("I32", stored((20, 5), 4, 6)),
        "double": ("F64", np.random.default_rng(7).normal(0, 1, (41, 6)).view("<u8")),
        "mlp.experts.up": ("F32", np.random.default_rng(8).normal(0, 1, (5, 7, 6)).astype("<f4").view("<u4")),
        "mlp.experts.down": ("BF16", stored((6, 5, 4), 2, 9)),
        "large": ("BF16", stored((300, 70), 2, 10)),
    }
    return open_checkpoint(write_checkpoint(tmp_path / "model", tensors))


def tasks_of(checkpoint: Checkpoint) -> list[Task]:
    return [Task(tensor) for tensor in checkpoint.tensors.values()]


def text(checkpoint: Checkpoint, workers: int) -> str:
    """The whole profile, to the last digit of each number."""
    return profile_checkpoint(checkpoint, workers=workers).model_copy(update={"created": ""}).model_dump_json()


@pytest.mark.parametrize("piece", [16, 176, 1024, 4096, 2**22])
def test_the_number_of_threads_changes_no_digit(
    piece: int, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_PIECE", piece)
    alone = text(checkpoint, 1)
    for workers in (2, 3, 8):
        assert text(checkpoint, workers) == alone


def test_thirty_runs_on_tiny_pieces_are_one(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_PIECE", 256)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places as often as they can
    try:
        assert len({text(checkpoint, 2 + run % 7) for run in range(30)}) == 1
    finally:
        sys.setswitchinterval(usual)


def test_how_a_tensor_is_cut_changes_no_fact(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = profile_checkpoint(checkpoint)
    facts = ("digest", "quantiles", "outliers", "largest", "zeros", "distinct_values", "min", "max", "nan", "inf")
    for piece in (16, 48, 400):
        monkeypatch.setattr(sweep, "_PIECE", piece)
        cut = profile_checkpoint(checkpoint, workers=3)
        for tensor in whole.tensors:
            other = cut.by_name[tensor.name]
            assert [getattr(other, fact) for fact in facts] == [getattr(tensor, fact) for fact in facts]
            for one, two in ((other.rows, tensor.rows), (other.columns, tensor.columns)):
                assert (one is None) == (two is None)
                if one and two:
                    assert (one.smallest_at, one.largest_at) == (two.smallest_at, two.largest_at)
                    assert [one.cv, one.median] == pytest.approx([two.cv, two.median], rel=1e-11)


def test_every_byte_is_read_once_and_those_of_wide_tensors_again(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_PIECE", 128)
    read: dict[str, int] = {}
    watch(monkeypatch, lambda tensor, size: read.update({tensor.name: read.get(tensor.name, 0) + size}))
    told: list[int] = []
    found = list(sweep.sweep(checkpoint, tasks_of(checkpoint), workers=4, progress=told.append))
    assert sum(told) == checkpoint.nbytes
    assert sorted(one.tensor.name for one in found) == sorted(checkpoint.tensors)
    times = {"F32": 3, "I32": 5, "F64": 5}  # the pass, the digits, and once to sort
    for name, tensor in checkpoint.tensors.items():
        assert read.get(name, 0) == tensor.nbytes * times.get(tensor.dtype, 1)


def watch(monkeypatch: pytest.MonkeyPatch, before: Callable[[Tensor, int], object]) -> None:
    """Call `before` with the tensor and the bytes asked for, each time that some are read."""
    read_into = TensorReader.read_into

    def watched(reader: TensorReader, buffer: memoryview, tensor: Tensor, offset: int) -> None:
        before(tensor, len(buffer))
        read_into(reader, buffer, tensor, offset)

    monkeypatch.setattr(TensorReader, "read_into", watched)


class Once:
    """Does something at the n-th call, by whatever thread."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self._left, self._action, self._lock = number, action, threading.Lock()

    def __call__(self, *_: object) -> None:
        with self._lock:
            self._left -= 1
            now = self._left == 0
        if now:
            self._action()


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


class Broken(Exception):
    """Something that nobody reckons with."""


def truncated(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, at: int) -> type[BaseException]:
    path = checkpoint.path / "model.safetensors"
    watch(monkeypatch, Once(at, lambda: os.truncate(path, path.stat().st_size - 3 * checkpoint.nbytes // 4)))
    return ShardTruncated


def unreadable(_: Checkpoint, monkeypatch: pytest.MonkeyPatch, at: int) -> type[BaseException]:
    preadv, fail = os.preadv, Once(at, raising(OSError(errno.EIO, "Input/output error")))

    def failing(*arguments: Any) -> int:
        fail()
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", failing)
    return FileUnreadable


def out_of_memory(_: Checkpoint, monkeypatch: pytest.MonkeyPatch, at: int) -> type[BaseException]:
    count, fail = narrow.tally_halves, Once(at, raising(MemoryError()))
    monkeypatch.setattr(narrow, "tally_halves", lambda *arguments: (fail(), count(*arguments)))
    return MemoryError


def out_of_memory_at_the_end(_: Checkpoint, monkeypatch: pytest.MonkeyPatch, at: int) -> type[BaseException]:
    count, fail = wide.count_digits, Once(min(at, 5), raising(MemoryError()))
    monkeypatch.setattr(wide, "count_digits", lambda *arguments: (fail(), count(*arguments)))
    return MemoryError


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("at", [1, 7, 40])
@pytest.mark.parametrize("fault", [truncated, unreadable, out_of_memory, out_of_memory_at_the_end])
def test_what_fails_in_a_thread_is_raised_and_all_of_them_end(
    fault: Callable[..., type[BaseException]],
    at: int,
    workers: int,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep, "_PIECE", 256)
    expected = fault(checkpoint, monkeypatch, at)
    began = time.monotonic()
    with pytest.raises(expected) as caught:
        profile_checkpoint(checkpoint, workers=workers)
    assert type(caught.value) is expected
    assert alive() == []
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("error", [Broken(), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_of_who_is_told_the_progress(error: BaseException, workers: int, checkpoint: Checkpoint) -> None:
    with pytest.raises(type(error)) as caught:
        profile_checkpoint(checkpoint, workers=workers, progress=Once(4, raising(error)))
    assert caught.value is error
    assert alive() == []


@pytest.mark.parametrize("workers", WORKERS)
def test_a_second_error_does_not_hide_or_delay_the_first(
    workers: int, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_PIECE", 64)
    errors = [Broken(number) for number in range(1000)]

    def fail(*_: object) -> None:
        raise errors.pop(0)

    watch(monkeypatch, fail)
    with pytest.raises(Broken):
        list(sweep.sweep(checkpoint, tasks_of(checkpoint), workers=workers))
    assert alive() == []


class Failing:
    """Keeps nothing, and fails where the caller's own work is done, between two results."""

    def kept(self, _: object) -> None:
        return None

    def histogram(self, *_: object) -> None:
        raise Broken

    def keep(self, *_: object) -> None:
        raise AssertionError


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_between_two_results(workers: int, checkpoint: Checkpoint) -> None:
    with pytest.raises(Broken) as caught:
        profile_checkpoint(checkpoint, workers=workers, keeper=Failing())
    assert alive() == [], caught  # though the traceback is still there


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_who_takes_only_some_results_leaves_no_thread(taken: int, workers: int, tmp_path: Path) -> None:
    many = {f"t{number}": ("BF16", stored((9, 5), 2, number)) for number in range(60)}  # more than the queue holds
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "many", many))
    results = sweep.sweep(checkpoint, tasks_of(checkpoint), workers=workers)
    assert alive() == [], "nothing begins before the first result is asked for"
    for _ in range(taken):
        next(results)
    time.sleep(0.02)  # the queue fills, and the threads wait for room in it
    results.close()
    assert alive() == []


@pytest.mark.parametrize("workers", WORKERS)
def test_an_interruption_while_waiting_ends_at_once(
    workers: int, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_PIECE", 16)
    began, sent = threading.Event(), []
    watch(monkeypatch, lambda *_: (began.set(), time.sleep(0.005)))  # more than ten seconds of reading

    def interrupt() -> None:
        began.wait(30)
        time.sleep(0.1)
        sent.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        profile_checkpoint(checkpoint, workers=workers)
    assert time.monotonic() - sent[0] < 2
    assert alive() == []
    other.join()


def test_a_second_look_is_broken_off_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_PIECE", 64)
    tensors = {"small": ("BF16", stored((4,), 2, 0)), "large": ("F64", stored((1600,), 8, 1))}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", tensors))
    again, reads = threading.Event(), [0]

    def slow(tensor: Tensor, size: int) -> None:
        reads[0] += size
        if reads[0] > checkpoint.nbytes:
            again.set()
            time.sleep(0.01)  # eight seconds in all

    watch(monkeypatch, slow)
    results = sweep.sweep(checkpoint, tasks_of(checkpoint), workers=2)
    assert next(results).tensor.name == "small"
    assert again.wait(30)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 1


def test_threads_that_cannot_be_started_leave_none_behind(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, fail = threading.Thread.start, Once(3, raising(RuntimeError("can't start new thread")))
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (fail(), start(thread)))
    with pytest.raises(RuntimeError, match="can't start"):
        profile_checkpoint(checkpoint, workers=8)
    assert alive() == []


def test_no_tensors_and_no_sensible_number_of_threads(checkpoint: Checkpoint) -> None:
    assert list(sweep.sweep(checkpoint, [])) == []
    for workers in (0, -3, None):
        assert len(list(sweep.sweep(checkpoint, tasks_of(checkpoint), workers=workers))) == 11


def test_experts_whose_bits_fill_no_whole_byte_are_hashed_to_the_last_one(tmp_path: Path) -> None:
    data = bytes(range(27))  # three slices of 18 elements of 4 bits: nine bytes each; and of two slices, 4.5
    write_shard(
        tmp_path / "model.safetensors",
        {"a.experts.w": ("F4", (2, 3, 9), data), "b.experts.w": ("F4", (3, 3, 6), data)},
    )
    profile = profile_checkpoint(open_checkpoint(tmp_path))
    assert [tensor.digest for tensor in profile.tensors] == [digest_bytes(data)] * 2
    assert [tensor.experts for tensor in profile.tensors] == [None, None]
