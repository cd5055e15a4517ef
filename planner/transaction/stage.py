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
from planner.checkpoint import in_hub_cache
from planner.errors import ReadOnly, StorageError, UnsafeInPlace
from planner.transaction.state import files_of, folders_of

__all__ = ["exclusive", "leftovers", "publish", "refuse_unsafe", "staged", "swap_in"]


@contextmanager
def exclusive(final: Path) -> Iterator[None]:
    """Be the only writer of the checkpoint `final`; first remove what a killed process left. Raises `Locked`."""
    with fsio.lock(final.parent / f".{final.name}.planner-lock"):
        for leftover in leftovers(final):
            fsio.remove_tree(leftover)
        yield


def leftovers(final: Path) -> list[Path]:
    """Stages of `final` that a killed process left. Only under the lock is none of them in use."""
    return sorted(final.parent.glob(f".{_literal(final.name)}.planner-stage-*"))


@contextmanager
def staged(final: Path, *, like: Path) -> Iterator[Path]:
    """An empty stage for `final`, with the mode of the folder `like`; removed if it is still there at the end.

    If the removal fails, the next command on `final` does it: that must neither hide why the transaction failed nor
    make a committed one look failed.
    """
    stage = final.parent / f".{final.name}.planner-stage-{secrets.token_hex(4)}"
    try:
        fsio.make_folder(stage, like=like)
        yield stage
    finally:
        with suppress(StorageError):
            try:
                fsio.remove_tree(stage)
            except KeyboardInterrupt:
                fsio.remove_tree(stage)
                raise


def swap_in(stage: Path, final: Path) -> None:
    """The one visible step of an in-place change. Afterwards the old files are at `stage`."""
    _fsync_folders(stage)
    fsio.exchange_folders(stage, final)


def publish(stage: Path, final: Path) -> None:
    """The one visible step of an out-of-place change."""
    _fsync_folders(stage)
    fsio.publish_folder(stage, final)


def refuse_unsafe(path: Path) -> None:
    """Raise `UnsafeInPlace` for a folder whose files are links into a place that others read.

    Raises `ReadOnly` for a folder that the user may not write into: the switch of names would get around that.
    """
    if path.is_symlink():
        raise UnsafeInPlace(
            f"{path} is a symbolic link to a checkpoint",
            hint=f"name the folder itself, {path.resolve()}, or write a copy with --out DIR",
        )
    if in_hub_cache(path):
        raise UnsafeInPlace(
            f"{path} is a snapshot in a hub cache, whose files are shared",
            hint="write a copy: --out DIR instead of --in-place",
        )
    for folder in (path, *(path / name for name in folders_of(path))):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ReadOnly(f"{folder} may not be written", hint="write a copy: --out DIR instead of --in-place")
    for name in files_of(path):
        if (path / name).is_symlink():
            raise UnsafeInPlace(
                f"{path / name} is a symbolic link, so its bytes belong to another place",
                hint="write a copy: --out DIR instead of --in-place",
            )


def _fsync_folders(stage: Path) -> None:
    for root, _, _ in os.walk(stage, topdown=False):
        fsio.fsync_folder(Path(root))


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
