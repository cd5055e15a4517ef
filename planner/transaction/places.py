"""Places where nothing is written: what others share, what is not ours to change, what is no plain file or folder.

All of it is found before the first byte is written and before anything is created.
"""

from __future__ import annotations

import os
from pathlib import Path

from planner import fsio
from planner.checkpoint import Checkpoint, hub_cache, in_hub_cache
from planner.errors import OutputExists, ReadOnly, StorageError, UnsafeInPlace, UsageError
from planner.transaction.state import files_of, folders_of

__all__ = ["free_name", "refuse_in_place", "refuse_linked", "refuse_output"]


def free_name(model: Path) -> Path:
    """A name for a result beside `model`, or in the current folder where its own is no place to write to."""
    parent, name = model.absolute().parent, model.name
    if inside_hub_cache(model):
        name = Checkpoint(model, {}, b"", (), {}).name.replace("/", "--")
    if inside_hub_cache(model) or not os.access(parent, os.W_OK | os.X_OK):
        parent = Path.cwd()
    names = [f"{name}-patched", *(f"{name}-patched-{number}" for number in range(2, 1000))]
    return next((parent / name for name in names if not os.path.lexists(parent / name)), parent / names[0])


def refuse_in_place(path: Path, *, locked: bool = True) -> None:
    """Raise `UnsafeInPlace` for a folder whose files, or whose name, belong to another place as well.

    Without the lock (`locked` is False) nothing is said about what a writer takes away in the meantime: before the lock
    is taken, which creates a file, this refuses what nobody can have caused but the user; with it, everything.

    Raises `ReadOnly` for one that the user may not write into (the switch of names would get around that), and
    `StorageError` for what is neither file nor folder.
    """
    if path.is_symlink():
        raise UnsafeInPlace(
            f"{path} is a symbolic link to a checkpoint",
            hint=f"name the folder itself, {path.resolve()}, or write a copy: --out {free_name(path)}",
        )
    if inside_hub_cache(path):
        raise UnsafeInPlace(f"{path} is in a hub cache, whose files are shared", hint=_copy_of(path))
    if os.path.ismount(path):
        raise UnsafeInPlace(
            f"{path} is where a file system is mounted, so its name cannot be exchanged", hint=_copy_of(path)
        )
    for folder in (path.absolute().parent, path, *(path / name for name in folders_of(path, locked=locked))):
        if not os.access(folder, os.W_OK | os.X_OK) and (locked or folder.exists()):
            raise ReadOnly(f"{folder} may not be written", hint=_copy_of(path))
    for name in files_of(path, locked=locked):
        if (path / name).is_symlink():
            raise UnsafeInPlace(
                f"{path / name} is a symbolic link, so its bytes belong to another place", hint=_copy_of(path)
            )


def refuse_linked(path: Path) -> None:
    """Raise `UnsafeInPlace` for a file with another name somewhere: only when no stage of ours is left behind."""
    for name in files_of(path):
        with fsio.storage_errors(path / name):
            names = (path / name).lstat().st_nlink
        if names > 1:
            raise UnsafeInPlace(
                f"{path / name} has {names} names (hard links), so its bytes belong to another place as well",
                hint=_copy_of(path),
            )


def refuse_output(out: Path, model: Path) -> None:
    """Raise `OutputExists`, `UsageError`, `UnsafeInPlace` or a `StorageError` for a place that takes no checkpoint."""
    if model.resolve() in out.resolve().parents:
        raise UsageError(
            f"{out} lies inside the model", hint=f"choose a folder outside of it: --out {free_name(model)}"
        )
    if inside_hub_cache(out):
        raise UnsafeInPlace(
            f"{out} is in a hub cache, which is not ours to fill", hint=f"choose: --out {free_name(model)}"
        )
    with fsio.storage_errors(out):
        if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise OutputExists(
                f"{out} exists and is not empty", hint=f"choose a new folder, as --out {free_name(out)}, or remove it"
            )
    if not out.parent.is_dir():
        raise StorageError(f"the folder {out.parent} does not exist", hint="make it first, or choose another place")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ReadOnly(
            f"{out.parent} may not be written", hint=f"choose a place you may write to, as --out {free_name(model)}"
        )


def inside_hub_cache(path: Path) -> bool:
    """Whether `path` is, or lies in, a hub cache: the one that is configured, or one by its shape."""
    real = path.resolve()
    cache = hub_cache().resolve()
    return any(in_hub_cache(place) or place == cache for place in (path.absolute(), real, *real.parents))


def _copy_of(model: Path) -> str:
    return f"write a copy: --out {free_name(model)}"
