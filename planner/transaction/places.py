"""Places where nothing is written: what others share, what is not ours to change, what is no plain file or folder.

All of it is found before the first byte is written and before anything is created.
"""

from __future__ import annotations

import os
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from planner import fsio
from planner.checkpoint import Checkpoint, hub_cache, in_hub_cache
from planner.errors import OutputExists, ReadOnly, StorageError, UnsafeInPlace, UsageError
from planner.transaction.beside import left_beside
from planner.transaction.removal import refuse_unremovable
from planner.transaction.stage import leftovers
from planner.transaction.state import files_of, folders_of

__all__ = ["free_name", "refuse_in_place", "refuse_linked", "refuse_output", "refuse_special_modes"]


def free_name(model: Path, *, ending: str = "patched") -> Path:
    """A name for a result beside `model`, or in the current folder where its own is no place to write to."""
    parent, name = model.absolute().parent, model.name
    if inside_hub_cache(model):
        name = Checkpoint(model, {}, b"", (), {}).name.replace("/", "--")
    if inside_hub_cache(model) or not os.access(parent, os.W_OK | os.X_OK) or fsio.fixed(parent):
        parent = Path.cwd()
    names = [f"{name}-{ending}", *(f"{name}-{ending}-{number}" for number in range(2, 1000))]
    return next((parent / name for name in names if not os.path.lexists(parent / name)), parent / names[0])


def refuse_in_place(path: Path, *, locked: bool = True, reverting: bool = False) -> None:
    """Raise `UnsafeInPlace` for a folder whose files, or whose name, belong to another place as well.

    Likewise for one that could not be removed after the switch of names. Without the lock (`locked` is False) nothing
    is said about what a writer takes away in the meantime: before the lock is taken, which creates a file, this refuses
    what nobody can have caused but the user; with it, everything. `reverting` is for the hint: a patch is taken back
    in place, and nowhere else.

    Raises `ReadOnly` for one that the user may not write into (the switch of names would get around that), and
    `StorageError` for what is neither file nor folder.
    """
    otherwise = _copy_of(path, reverting)
    if path.is_symlink():
        raise UnsafeInPlace(
            f"{path} is a symbolic link to a checkpoint",
            hint=f"name the folder itself, {path.resolve()}, or {otherwise}",
        )
    if inside_hub_cache(path):
        raise UnsafeInPlace(f"{path} is in a hub cache, whose files are shared", hint=otherwise)
    _refuse_mounted(path, otherwise)
    closed = _copy_of(path, reverting, closed=True)
    for folder in (path.absolute().parent, path, *(path / name for name in folders_of(path, locked=locked))):
        if not os.access(folder, os.W_OK | os.X_OK) and (locked or folder.exists()):
            raise ReadOnly(f"{folder} may not be written", hint=closed)
    for name in files_of(path, locked=locked):
        if (path / name).is_symlink():
            raise UnsafeInPlace(
                f"{path / name} is a symbolic link, so its bytes belong to another place", hint=otherwise
            )
    refuse_unremovable(path, locked=locked, otherwise=otherwise)


def refuse_linked(path: Path, *, reverting: bool = False) -> None:
    """Raise `UnsafeInPlace` for a file with another name somewhere: only when no stage of ours is left behind."""
    for name in files_of(path):
        with fsio.storage_errors(path / name):
            names = (path / name).lstat().st_nlink
        if names > 1:
            owner = next((owner for owner in left_beside(path) if _staged_for(owner, path / name)), None)
            raise UnsafeInPlace(
                f"{path / name} has {names} names (hard links), so its bytes belong to another place as well",
                hint=_copy_of(path, reverting)
                if owner is None
                else f"one is of a command that was killed when this was {owner.name}: "
                f"`planner recover {shlex.quote(str(owner))}` removes it",
            )


def refuse_special_modes(path: Path) -> None:
    """Raise `UnsafeInPlace` for a shard that would lose its setuid or setgid bit while its bytes are overwritten.

    The system takes these bits from a file that anybody but root writes into. Only for a change with low space: else
    new files are written, and get their mode afterwards.
    """
    if os.geteuid() == 0:
        return
    for name in files_of(path, locked=False):
        with fsio.storage_errors(path / name), suppress(FileNotFoundError):  # without the lock it may be gone
            mode = (path / name).stat().st_mode
            if name.endswith(".safetensors") and mode & (stat.S_ISUID | stat.S_ISGID):
                raise UnsafeInPlace(
                    f"{path / name} has a setuid or setgid bit, which it would lose while its bytes are overwritten",
                    hint="leave --low-space out",
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
        if out.is_dir() and (os.path.ismount(out) or out.resolve() in fsio.mounted_in(out)):
            raise UnsafeInPlace(
                f"something is mounted on {out}, so no other folder can get its name",
                hint=f"choose a folder in it: --out {shlex.quote(str(out / (model.name or 'patched')))}",
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


def _refuse_mounted(path: Path, otherwise: str) -> None:
    """What is mounted in the folder would be taken for its files; what shows it elsewhere would show the old one."""
    inside = fsio.mounted_in(path)
    if os.path.ismount(path) or path.resolve() in inside:
        raise UnsafeInPlace(
            f"{path} is where a file system or a folder is mounted, so its name cannot be exchanged", hint=otherwise
        )
    if inside:
        raise UnsafeInPlace(
            f"another file system, or another folder, is mounted on {inside[0]}, and is no part of the checkpoint",
            hint=f"unmount it (`umount {shlex.quote(str(inside[0]))}`), or {otherwise}",
        )
    if elsewhere := fsio.mounted_from(path):
        raise UnsafeInPlace(
            f"{path}, or a part of it, is mounted on {elsewhere[0]} as well, which would go on showing the old files",
            hint=f"unmount that (`umount {shlex.quote(str(elsewhere[0]))}`), or {otherwise}",
        )


def _staged_for(owner: Path, file: Path) -> bool:
    """Whether a stage that was left of `owner` has the file under a second name."""
    with suppress(OSError):
        return any((stage / file.name).samefile(file) for stage in leftovers(owner) if (stage / file.name).exists())
    return False


def _copy_of(model: Path, reverting: bool, *, closed: bool = False) -> str:
    """What to do where nothing can be done in place. The copy of a folder that is `closed` has to be opened first."""
    if not reverting:
        return f"write a copy: --out {shlex.quote(str(free_name(model)))}"
    here, copy = shlex.quote(str(model.absolute())), shlex.quote(str(free_name(model, ending="reverted")))
    # Links are followed, and files with several names get one each; what cannot be kept, as owners, stops nothing.
    steps = [f"cp -rL --preserve=all --no-preserve=links {here} {copy}"]
    steps += [f"find {copy} -type d -exec chmod u+rwx {{}} +"] * closed
    return f"take the patch back in a copy: `{' && '.join([*steps, f'planner revert {copy}'])}`"
