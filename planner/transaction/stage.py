"""The stage: a complete new checkpoint folder beside the final place, under a name that nobody reads.

Everything is written and proven there. The only step that anybody can see is one switch of names. Whatever stops the
process before it leaves the old state, and a folder that the next command on this checkpoint removes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from planner import fsio
from planner.errors import StorageError

__all__ = [
    "finish_folders",
    "journal_folder",
    "leftovers",
    "lock_file",
    "publish",
    "require_exchange",
    "staged",
    "swap_in",
]


def lock_file(final: Path) -> Path:
    """Held by the writer of `final`."""
    return final.parent / f".{final.name}.planner-lock"


def journal_folder(final: Path) -> Path:
    """There while a checkpoint is overwritten in its place (`low_space`)."""
    return final.parent / f".{final.name}.planner-journal"


def leftovers(final: Path) -> list[Path]:
    """Stages of `final` that a killed process left. Only under the lock is none of them in use."""
    with fsio.storage_errors(final.parent):
        return sorted(final.parent.glob(f".{_literal(final.name)}.planner-stage-*"))


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """An empty stage for `final`; removed if it is still there at the end and no journal needs it.

    If the removal fails, the next command on `final` does it: that must neither hide why the transaction failed nor
    make a committed one look failed.
    """
    stage = final.parent / f".{final.name}.planner-stage-{secrets.token_hex(4)}"
    try:
        fsio.make_folder(stage)
        yield stage
    finally:
        with suppress(StorageError):
            if not journal_folder(final).exists():
                try:
                    fsio.remove_tree(stage)
                except KeyboardInterrupt:
                    fsio.remove_tree(stage)
                    raise


def require_exchange(stage: Path) -> None:
    """Try, on two empty folders, whether this file system can swap names. Raises `UnsafeInPlace` if it cannot."""
    first, second = stage / "first", stage / "second"
    for folder in (first, second):
        fsio.make_folder(folder)
    try:
        fsio.exchange_folders(first, second)
    finally:
        for folder in (first, second):
            fsio.remove_tree(folder)


def swap_in(stage: Path, final: Path) -> None:
    """The one visible step of an in-place change. Afterwards the old files are at `stage`."""
    finish_folders(stage, final)
    fsio.exchange_folders(stage, final)


def publish(stage: Path, final: Path, *, like: Path) -> None:
    """The one visible step of an out-of-place change; the folders get the attributes of those of `like`."""
    finish_folders(stage, like, writable=True)  # a copy of what one may not write is one's own
    fsio.publish_folder(stage, final)


def finish_folders(stage: Path, like: Path, *, writable: bool = False) -> None:
    """Attributes as those of the folders of the same names in `like`, from the inside out; then all is durable."""
    with fsio.storage_errors(stage):
        folders = [Path(root) for root, _, _ in os.walk(stage, topdown=False, onerror=_raise)]
    for folder in folders:
        if (model := like / folder.relative_to(stage)).is_dir():
            fsio.attributes_like(folder, model, writable=writable)
        fsio.fsync_folder(folder)


def _raise(error: OSError) -> None:
    raise error


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
