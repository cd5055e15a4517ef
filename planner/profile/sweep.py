"""One sweep over the bytes of some tensors: each piece is read once, hashed and counted, by as many threads as asked.

A thread takes the pieces of one tensor in order; one that finds no tensor left untouched helps with the largest rest.
Hashing and merging go by turns in the order of the pieces, so that neither a digest nor the last digit of a sum depends
on the number of threads. Memory: a few MiB a thread, whatever the size of the tensors.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from planner.checkpoint import Checkpoint, Tensor, TensorReader
from planner.dtypes import NumberDtype, number_dtype
from planner.dtypes.floats import Patterns
from planner.profile.tallies import Described, Matrix, Scratch, Tally, tally_for
from planner.profile.types import Statistics

__all__ = ["Found", "Progress", "Task", "available_cores", "sweep"]

Progress = Callable[[int], None]

_PIECE = 4 * 2**20  # a multiple of every element's size
_MOST_THREADS = 32  # unless more are asked for: each takes 5 MiB, and 8 more for a million columns


@dataclass(frozen=True)
class Task:
    """One tensor to look at."""

    tensor: Tensor
    experts: int | None = None
    """How many experts lie along its first dimension, if each is to be described as well."""


@dataclass(frozen=True)
class Found:
    """What was found out about one tensor."""

    tensor: Tensor
    digest: str
    whole: Described | None
    """None where the dtype's values are not read."""
    experts: tuple[Statistics, ...]


def available_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(
    checkpoint: Checkpoint, tasks: Sequence[Task], *, workers: int | None = None, progress: Progress | None = None
) -> Generator[Found]:
    """What there is to know about each tensor, in the order in which they are finished.

    `progress` is told the bytes read. Raises what reading raises: `ShardTruncated`, `FileUnreadable`.
    """
    count = max(workers or min(available_cores(), _MOST_THREADS), 1)
    board = _Board(checkpoint, tasks, results=2 * count, progress=progress or (lambda _: None))
    threads = [threading.Thread(target=board.work, name=f"sweep-{number}", daemon=True) for number in range(count)]
    try:
        for thread in threads:
            thread.start()
            board.wait_for_one()
        for _ in tasks:
            yield board.next_result()
    finally:
        board.stop()
        for thread in threads:
            while thread.is_alive():
                board.discard_results()
                thread.join(timeout=0.02)


class _Job:
    """A tensor on its way. Its pieces are claimed, hashed and merged in order."""

    def __init__(self, task: Task) -> None:
        self.tensor = task.tensor
        self.turn = threading.Condition()
        self.hashed = self.merged = self.claimed = 0
        dtype = number_dtype(task.tensor.dtype)
        shape = task.tensor.shape
        self.parts = (task.experts or 1) if dtype else 1  # the bits of an expert may fill no whole byte
        self._part_bytes = task.tensor.nbytes // self.parts
        self._pieces = -(-self._part_bytes // _PIECE)
        self.pieces = self._pieces * self.parts
        self._hasher = blake3()
        self._dtype: NumberDtype | None = dtype
        self._whole = tally_for(Matrix.of(dtype, shape)) if dtype else None
        self._part_matrix = Matrix.of(dtype, shape[1:]) if dtype and self.parts > 1 else None
        self._parts: dict[int, Tally] = {}
        self._experts: list[Statistics] = []

    @property
    def left(self) -> int:
        """Pieces that nobody has claimed."""
        return self.pieces - self.claimed

    def do(
        self, index: int, reader: TensorReader, buffer: memoryview, scratch: Scratch, stopped: threading.Event
    ) -> int:
        """Read, hash, count and merge one piece; returns its size."""
        part, piece = divmod(index, self._pieces)
        within = piece * _PIECE
        size = min(_PIECE, self._part_bytes - within)
        data = buffer[:size]
        reader.read_into(data, self.tensor, part * self._part_bytes + within)
        self._wait(lambda: self.hashed == index, stopped)
        self._hasher.update(data)
        self._next("hashed")
        if self._dtype:
            tally, first = self._tally(part), within // self._dtype.itemsize
            tally.count(scratch, np.frombuffer(data, self._dtype.pattern), first)
            self._wait(lambda: self.merged == index, stopped)
            tally.merge(scratch, first)
            if self.parts > 1 and piece == self._pieces - 1:
                self._finish_part(part, tally, reader, stopped)
        else:
            self._wait(lambda: self.merged == index, stopped)
        self._next("merged")
        return size

    def result(self, reader: TensorReader, stopped: threading.Event) -> Found:
        """The result, once every piece is merged."""

        def again() -> Iterator[Patterns]:
            return self._again(reader, 0, self.tensor.nbytes, stopped)

        return Found(
            tensor=self.tensor,
            digest="blake3:" + self._hasher.hexdigest(),
            whole=self._whole.finish(again) if self._whole else None,
            experts=tuple(self._experts),
        )

    def _tally(self, part: int) -> Tally:
        if self._part_matrix is None:
            assert self._whole is not None, "asked for only where the dtype is read"
            return self._whole
        with self.turn:
            return self._parts.setdefault(part, tally_for(self._part_matrix))

    def _finish_part(self, part: int, tally: Tally, reader: TensorReader, stopped: threading.Event) -> None:
        assert self._whole is not None, "asked for only where the dtype is read"
        self._whole.absorb(tally, part * tally.matrix.elements)
        begin = part * self._part_bytes
        described = tally.finish(lambda: self._again(reader, begin, begin + self._part_bytes, stopped))
        self._experts.append(described.statistics)  # the rest takes half a MiB an expert
        with self.turn:
            del self._parts[part]

    def _again(self, reader: TensorReader, begin: int, end: int, stopped: threading.Event) -> Iterator[Patterns]:
        assert self._dtype is not None, "asked for only where the dtype is read"
        buffer = np.empty(min(_PIECE, end - begin), np.uint8).data
        for place in range(begin, end, _PIECE):
            if stopped.is_set():
                raise _Stopped
            data = buffer[: min(_PIECE, end - place)]
            reader.read_into(data, self.tensor, place)
            yield np.frombuffer(data, self._dtype.pattern)

    def _wait(self, ready: Callable[[], bool], stopped: threading.Event) -> None:
        with self.turn:
            self.turn.wait_for(lambda: ready() or stopped.is_set())
        if stopped.is_set():
            raise _Stopped

    def _next(self, counter: str) -> None:
        with self.turn:
            setattr(self, counter, getattr(self, counter) + 1)
            self.turn.notify_all()


class _Stopped(Exception):
    """Another thread failed, or nobody waits for the result any more."""


class _Board:
    """Who does what: hands out pieces and takes results."""

    def __init__(self, checkpoint: Checkpoint, tasks: Sequence[Task], *, results: int, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._waiting = iter(tasks)
        self._active: list[_Job] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._arrived = threading.Semaphore(0)
        self._results: queue.Queue[Found | BaseException] = queue.Queue(maxsize=results)
        self._progress = progress

    def wait_for_one(self) -> None:
        """Wait until the thread just started is at work: two must not begin at once under a debugger or coverage.

        CPython 3.11 fails a thread that installs its trace function while another one does.
        """
        self._arrived.acquire(timeout=10)

    def next_result(self) -> Found:
        """A finished tensor. Raises what went wrong in a thread."""
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def discard_results(self) -> None:
        """Make room, so that no thread waits to hand in what nobody will take."""
        with suppress(queue.Empty):
            while True:
                self._results.get_nowait()

    def stop(self) -> None:
        """Wake everybody and let them go home."""
        self._stopped.set()
        with self._lock:
            active = list(self._active)
        for job in active:
            with job.turn:
                job.turn.notify_all()

    def work(self) -> None:
        """What one thread does."""
        self._arrived.release()
        try:
            with TensorReader(self._checkpoint) as reader:
                self._work(reader, np.empty(_PIECE, np.uint8).data, Scratch())
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised again where the results are waited for
            self._stopped.set()
            self._results.put(error)
            self.stop()

    def _work(self, reader: TensorReader, buffer: memoryview, scratch: Scratch) -> None:
        job: _Job | None = None
        while (claim := self._claim(job)) is not None:
            job, index = claim
            done = job.do(index, reader, buffer, scratch, self._stopped) if job.pieces else 0
            with self._lock:
                self._progress(done)
            if index >= job.pieces - 1:
                with self._lock:
                    self._active.remove(job)
                self._results.put(job.result(reader, self._stopped))

    def _claim(self, current: _Job | None) -> tuple[_Job, int] | None:
        with self._lock:
            if self._stopped.is_set():
                return None
            if current is None or current.left <= 0:
                task = next(self._waiting, None)
                if task is not None:
                    current = _Job(task)
                    self._active.append(current)
                else:
                    current = max(self._active, key=lambda job: job.left, default=None)
                    if current is None or current.left <= 0:
                        return None
            current.claimed += 1
            return current, current.claimed - 1
