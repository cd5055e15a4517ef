"""Work in steps, each step in a thread of its own, one item after the other: as in a factory line.

The items arrive in order and each step sees them in order, so that hashes and residuals come out the same however many
cores there are. What takes its time in a step must release the GIL. Memory: a few items a step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["in_line"]

T = TypeVar("T")

_AHEAD = 2  # items that may wait before a step
_END = object()


def in_line(items: Iterator[T], *steps: Callable[[T], None], threads: bool = True) -> Generator[T]:
    """Every item after all `steps` have been done to it.

    With `threads`, each step and the making of the items have a thread; without, everything is done by the caller, who
    is better off so with a few items. Raises what a step or the making of an item raises. To be closed by who does not
    take all of it (`contextlib.closing`).
    """
    if not threads:
        for item in items:
            for step in steps:
                step(item)
            yield item
        return
    line = _Line(items, steps)
    try:
        line.start()
        yield from line.finished()
    finally:
        line.stop()


class _Line:
    def __init__(self, items: Iterator[Any], steps: tuple[Callable[[Any], None], ...]) -> None:
        self._items = items
        self._stopped = threading.Event()
        self._arrived = threading.Semaphore(0)
        self._belts: list[queue.Queue[Any]] = [queue.Queue(_AHEAD) for _ in range(len(steps) + 1)]
        work: list[Callable[[], None]] = [self._make]
        work += [self._step(number, step) for number, step in enumerate(steps)]
        self._threads = [threading.Thread(target=self._heard(action), daemon=True) for action in work]

    def start(self) -> None:
        """One after the other: CPython 3.11 fails a thread that begins to be traced while another one does."""
        for thread in self._threads:
            thread.start()
            self._arrived.acquire(timeout=10)

    def finished(self) -> Generator[Any]:
        while (item := self._belts[-1].get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item

    def stop(self) -> None:
        """Send everybody home, also who waits for an item or for room."""
        self._stopped.set()
        for thread in self._threads:
            while thread.is_alive():
                for belt in self._belts:
                    with suppress(queue.Empty):
                        while True:
                            belt.get_nowait()
                    with suppress(queue.Full):
                        belt.put_nowait(_END)
                thread.join(timeout=0.01)

    def _make(self) -> None:
        for item in self._items:
            if self._stopped.is_set():
                return
            self._belts[0].put(item)
        self._belts[0].put(_END)

    def _step(self, number: int, step: Callable[[Any], None]) -> Callable[[], None]:
        taken, given = self._belts[number], self._belts[number + 1]

        def work() -> None:
            while (item := taken.get()) is not _END and not self._stopped.is_set():
                step(item)
                given.put(item)
            given.put(_END)

        return work

    def _heard(self, action: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            self._arrived.release()
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - it is raised again where the items are taken
                self._belts[-1].put(_Failed(error))

        return work


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error
