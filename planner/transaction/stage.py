"""The stage: a complete new checkpoint folder beside the final place, under a name that nobody reads.

Everything is written and proven there. The only step that anybody can see is one switch of names. Whatever stops the
process before it leaves the old state, and a folder that the next command on this checkpoint removes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from planner import fsio
from planner.checkpoint import Checkpoint, in_hub_cache, open_checkpoint
from planner.errors import CheckpointError, ReadOnly, StorageError, UnsafeInPlace
from planner.transaction.state import files_of, folders_of, measure
from planner.transaction.types import State

__all__ = [
    "Content",
    "exclusive",
    "leftovers",
    "proven",
    "publish",
    "refuse_unsafe",
    "stage_files",
    "staged",
    "swap_in",
]

Content = Callable[[], Iterator[bytes]]
"""Gives the new bytes of one tensor, chunk by chunk."""

Progress = Callable[[int], None]


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


def stage_files(
    checkpoint: Checkpoint,
    stage: Path,
    contents: Mapping[str, Content],
    *,
    share: bool,
    progress: Progress | None = None,
) -> None:
    """Fill the stage: shards with new `contents` for some tensors are written, every other file is taken over as it is.

    With `share`, an unchanged file may be the same file under a second name (for an in-place switch, where the old
    name goes away). Headers are copied as bytes, so order, metadata and padding stay. `progress` is told bytes.
    """
    changed = {checkpoint.tensors[name].shard for name in contents}
    for name in folders_of(checkpoint.path):
        fsio.make_folder(stage / name, like=checkpoint.path / name)
    for name in files_of(checkpoint.path):
        source, target = checkpoint.path / name, stage / name
        if name in changed:
            fsio.create_file(target, _shard_bytes(checkpoint, name, contents, progress), like=source)
        else:
            (fsio.link_or_copy_file if share else fsio.copy_file)(source, target)
            if progress:
                progress(target.stat().st_size)


def proven(
    checkpoint: Checkpoint,
    stage: Path,
    before: State,
    changed: Mapping[str, str | None],
    *,
    progress: Progress | None = None,
) -> State:
    """The state of the filled stage, read back from the disk: what was meant to change, and nothing else.

    `changed` maps each rewritten tensor to the digest it must have now, or to None where the caller compares. Raises
    `StorageError`.
    """
    try:
        written = open_checkpoint(stage)
        after = measure(written, progress=progress)
    except CheckpointError as error:
        raise fsio.not_as_written(error.message) from None
    wanted = before.tensors | {name: digest or after.tensors.get(name, "") for name, digest in changed.items()}
    wrong = [name for name in wanted if after.tensors.get(name) != wanted[name]]
    rewritten = {checkpoint.tensors[name].shard for name in changed}
    for name in sorted(before.files.keys() | after.files.keys()):
        old, new = before.files.get(name), after.files.get(name)
        if name in rewritten and old and new:
            same = (old.size, old.mode) == (new.size, new.mode)
            same = same and checkpoint.header_bytes(name) == written.header_bytes(name)
        else:
            same = old == new
        if not same:
            wrong.append(name)
    if wrong:
        raise fsio.not_as_written(", ".join(wrong[:5]))
    return after


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


def _shard_bytes(
    checkpoint: Checkpoint, name: str, contents: Mapping[str, Content], progress: Progress | None
) -> Iterator[bytes]:
    yield checkpoint.header_bytes(name)
    for entry in checkpoint.header(name).entries:
        content = contents.get(entry.name)
        for chunk in content() if content else checkpoint.chunks(checkpoint.tensors[entry.name]):
            yield chunk
            if progress:
                progress(len(chunk))


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
