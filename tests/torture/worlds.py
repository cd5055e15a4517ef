"""A world: one small folder with a checkpoint in it; what it holds to the last bit; and copies of it.

A snapshot is of everything that a promise is about: the names, and of each the kind, mode, owner, extended attributes
and bytes. Times are left out: a change of bytes must show in them.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "Snapshot", "copied", "difference", "memory_folder", "snapshot"]


class Entry(NamedTuple):
    """One name."""

    mode: int
    """Kind and permission bits."""
    owner: tuple[int, int]
    """User and group."""
    extended: tuple[tuple[str, bytes], ...]
    """Extended attributes, sorted."""
    content: bytes | None
    """Bytes of a file, target of a link, None for a folder."""


Snapshot = dict[str, Entry]
"""By path inside the folder; the folder itself is `.`."""


def snapshot(folder: Path) -> Snapshot | None:
    """All there is in `folder`; None if it is not there."""
    if not os.path.lexists(folder):
        return None
    found: Snapshot = {}
    _collect(os.fspath(folder), ".", found)
    return found


def _collect(path: str, name: str, found: Snapshot) -> None:
    state = os.lstat(path)
    content = None
    if stat.S_ISREG(state.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    elif stat.S_ISLNK(state.st_mode):
        content = os.fsencode(os.readlink(path))
    extended = tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(_extended(path)))
    found[name] = Entry(state.st_mode, (state.st_uid, state.st_gid), extended, content)
    if stat.S_ISDIR(state.st_mode):
        for below in sorted(os.listdir(path)):
            _collect(f"{path}/{below}", below if name == "." else f"{name}/{below}", found)


def _extended(path: str) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []


def difference(found: Snapshot | None, meant: Snapshot | None) -> str:
    """The first things in which two snapshots differ, in words."""
    if found is None or meant is None:
        return "same" if found is meant else "is absent" if found is None else "is there"
    said = [f"{name} is missing" for name in meant if name not in found]
    said += [f"{name} is too much" for name in found if name not in meant]
    for name in meant.keys() & found.keys():
        for what, one, other in zip(Entry._fields, found[name], meant[name], strict=True):
            if one != other:
                size = (
                    f" ({len(one)} bytes for {len(other)})"
                    if isinstance(one, bytes) and isinstance(other, bytes)
                    else ""
                )
                said.append(f"{what} of {name} differs{size}")
    return "; ".join(sorted(said)[:4]) or "same"


def copied(template: Path, world: Path) -> Path:
    """Make `world` a copy of `template`, whatever was there; names of one file stay names of one file."""
    shutil.rmtree(world, ignore_errors=True)
    seen: dict[int, str] = {}
    _copy(os.fspath(template), os.fspath(world), seen)
    return world


def _copy(source: str, target: str, seen: dict[int, str]) -> None:
    state = os.lstat(source)
    if stat.S_ISDIR(state.st_mode):
        os.mkdir(target, 0o700)
        for name in os.listdir(source):
            _copy(f"{source}/{name}", f"{target}/{name}", seen)
    elif stat.S_ISLNK(state.st_mode):
        os.symlink(os.readlink(source), target)
        return
    elif state.st_nlink > 1 and state.st_ino in seen:
        os.link(seen[state.st_ino], target)
        return
    else:
        with open(source, "rb") as reader, open(target, "wb") as writer:
            writer.write(reader.read())
        seen[state.st_ino] = target
    os.chown(target, state.st_uid, state.st_gid)
    for key in _extended(source):
        os.setxattr(target, key, os.getxattr(source, key))
    os.chmod(target, stat.S_IMODE(state.st_mode))


def memory_folder(prefix: str = "torture-") -> Path:
    """A new folder in memory where there is one: what is written a hundred thousand times need not reach a disk."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix=prefix, dir=memory if os.access(memory, os.W_OK) else None))
