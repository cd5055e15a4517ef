"""The stage: a complete new checkpoint folder beside the final place, under a name that nobody reads.

Everything is written and proven there. The only step that anybody can see is one switch of names. Whatever stops the
process before it leaves the old state, and a folder that the next command on this checkpoint removes.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from planner import fsio
from planner.errors import FileInUse, Interrupted, StorageError
from planner.transaction.sighting import Sighting

__all__ = [
    "done_already",
    "finish_folders",
    "is_stage",
    "journal_folder",
    "leftovers",
    "lock_file",
    "own_name",
    "publish",
    "require_exchange",
    "staged",
    "swap_in",
]


def own_name(folder: Path) -> Path:
    """The same folder by a name of its own: beside `model/sub/..` nothing can stand."""
    return folder.resolve() if folder.name in ("", "..") else folder


def lock_file(final: Path) -> Path:
    """Held by the writer of `final`."""
    return final.parent / f".{final.name}.planner-lock"


def journal_folder(final: Path) -> Path:
    """There while a checkpoint is overwritten in its place (`low_space`)."""
    return final.parent / f".{final.name}.planner-journal"


def leftovers(final: Path) -> list[Path]:
    """Stages of `final` that a killed process left. Only under the lock is none of them in use."""
    with fsio.storage_errors(final.parent):
        return sorted(path for path in final.parent.iterdir() if is_stage(path.name, final))


def is_stage(name: str, final: Path) -> bool:
    """Whether `name` is one that a stage of `final` can have; no other folder of somebody is taken for one."""
    return re.fullmatch(re.escape(f".{final.name}.planner-stage-") + "[0-9a-f]{8}", name) is not None


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """An empty stage for `final`; removed if it is still there at the end and no journal needs it.

    If the removal fails, the next command on `final` does it: that must neither hide why the transaction failed nor
    make a committed one look failed. Raises `Interrupted` for a Ctrl-C that came when `final` was this stage already:
    who is told that nothing was done would do it twice.
    """
    stage, made = final.parent / f".{final.name}.planner-stage-{secrets.token_hex(4)}", None
    try:
        try:
            fsio.make_folder(stage)
            made = _inode(stage)
            yield stage
        finally:
            _remove(stage, final)
    except KeyboardInterrupt:
        if made is not None and _inode(final) == made:
            raise done_already(final) from None
        raise


def done_already(final: Path) -> Interrupted:
    """What is raised for a Ctrl-C that comes too late."""
    return Interrupted(
        f"stopped, but what was asked for had been done already: {final} is whole",
        hint=f"do not run the command again; `planner log {shlex.quote(str(final))}` shows what is in force",
    )


def _remove(stage: Path, final: Path) -> None:
    with suppress(StorageError):
        if not journal_folder(final).exists():
            try:
                fsio.remove_tree(stage)
            except KeyboardInterrupt:
                fsio.remove_tree(stage)
                raise


def _inode(folder: Path) -> tuple[int, int] | None:
    try:
        state = folder.stat(follow_symlinks=False)
    except OSError:
        return None
    return state.st_dev, state.st_ino


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


def swap_in(stage: Path, final: Path, seen: Sighting) -> None:
    """The one visible step of an in-place change. Afterwards the old files are at `stage`.

    Raises `FileInUse` if they are not as they were `seen`, be it at the last moment; then nothing has changed.
    """
    finish_folders(stage, final)
    seen.refuse_changed(final)
    fsio.exchange_folders(stage, final)
    try:
        seen.refuse_changed(stage)
    except FileInUse:
        fsio.exchange_folders(stage, final)
        raise


def publish(stage: Path, final: Path, *, like: Path) -> None:
    """The one visible step of an out-of-place change; the folders get the attributes of those of `like`."""
    finish_folders(stage, like, writable=True)  # a copy of what one may not write is one's own
    fsio.publish_folder(stage, final)


def finish_folders(stage: Path, like: Path, *, writable: bool = False) -> None:
    """Attributes as those of the folders of the same names in `like`, from the inside out; then all is durable."""
    with fsio.storage_errors(stage):
        folders = [stage]
        for folder in folders:  # which grows: os.walk calls itself for each level
            with os.scandir(folder) as entries:
                folders += sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    for folder in reversed(folders):
        model = like / folder.relative_to(stage)
        # The first records are whose the model is: its owner has to be able to remove them.
        fsio.attributes_like(folder, model if model.is_dir() else like, writable=writable)
        fsio.fsync_folder(folder)
