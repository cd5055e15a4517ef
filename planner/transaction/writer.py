"""Being the only writer of a checkpoint, which begins with cleaning up after one that was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from planner import fsio
from planner.errors import PlannerError
from planner.transaction.in_place.low_space import settle
from planner.transaction.ledger import restore_reserve
from planner.transaction.stage import done_already, leftovers, lock_file
from planner.transaction.unfinished import unfinished_records

__all__ = ["exclusive"]


@contextmanager
def exclusive(final: Path) -> Iterator[None]:
    """Be the only writer of the checkpoint `final`; first make whole what a killed process left, and remove the rest.

    Raises `Locked`, `RecoveryBlocked`, `LedgerDamaged` or another `StorageError`; `Interrupted` for a Ctrl-C when all
    is done but for giving up the lock, whose file then stays and locks nobody out.
    """
    done = False
    try:
        with fsio.lock(lock_file(final)):
            settle(final)
            for leftover in leftovers(final):
                fsio.remove_tree(leftover)
            for file in unfinished_records(final):
                fsio.remove_file(file)
            _restore(final)
            try:
                yield
                done = True
            except BaseException:
                _restore(final)
                raise
    except KeyboardInterrupt:
        if done:
            raise done_already(final) from None
        raise


def _restore(final: Path) -> None:
    """Reserve again what a revert gave up that did not come to its end; where there is no room now, the next may."""
    with suppress(PlannerError):
        restore_reserve(final)
