"""The stage: a complete new checkpoint folder beside the final place, under a name that nobody reads.

Everything is written and proven there. The only step that anybody can see is one switch of names. Whatever stops the
process before it leaves the old state, and a folder that the next command on this checkpoint removes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from planner import fsio
from planner.checkpoint import Checkpoint, in_hub_cache
from planner.errors import UnsafeInPlace
from planner.transaction.state import files_of

__all__ = ["Content", "exclusive", "leftovers", "publish", "refuse_unsafe", "stage_files", "staged", "swap_in"]

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
    """An empty stage for `final`, with the mode of the folder `like`; removed if it is still there at the end."""
    stage = final.parent / f".{final.name}.planner-stage-{secrets.token_hex(4)}"
    try:
        fsio.make_folder(stage, like=like)
        yield stage
    finally:
        fsio.remove_tree(stage)


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
    made = {Path()}
    for name in files_of(checkpoint.path):
        for parent in reversed(Path(name).parents):
            if parent not in made:
                made.add(parent)
                fsio.make_folder(stage / parent, like=checkpoint.path / parent)
        source, target = checkpoint.path / name, stage / name
        if name in changed:
            fsio.create_file(target, _shard_bytes(checkpoint, name, contents, progress), like=source)
        else:
            (fsio.link_or_copy_file if share else fsio.copy_file)(source, target)
            if progress:
                progress(target.stat().st_size)


def swap_in(stage: Path, final: Path) -> None:
    """The one visible step of an in-place change. Afterwards the old files are at `stage`."""
    _fsync_folders(stage)
    fsio.exchange_folders(stage, final)


def publish(stage: Path, final: Path) -> None:
    """The one visible step of an out-of-place change."""
    _fsync_folders(stage)
    fsio.publish_folder(stage, final)


def refuse_unsafe(path: Path) -> None:
    """Raise `UnsafeInPlace` for a folder whose files are links into a place that others read."""
    if in_hub_cache(path):
        raise UnsafeInPlace(
            f"{path} is a snapshot in a hub cache, whose files are shared",
            hint="write a copy: --out DIR instead of --in-place",
        )
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
    header = next(shard.header for shard in checkpoint.shards if shard.name == name)
    with (checkpoint.path / name).open("rb") as file:
        yield file.read(header.data_begin)
    for entry in header.entries:
        content = contents.get(entry.name)
        for chunk in content() if content else checkpoint.chunks(checkpoint.tensors[entry.name]):
            yield chunk
            if progress:
                progress(len(chunk))


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
