"""What is mounted where: a folder in a tree may be the door to another tree, which is not part of the first.

A mount of another file system shows by its device. A bind mount of the same file system does not: only the kernel's
table of mounts tells. Two paths can lead to one folder, so what is compared is the place on the file system and not
the path. Where there is no table, only devices are left, and what mounts files has to be trusted.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["mounted_from", "mounted_in"]

_TABLE = Path("/proc/self/mountinfo")
_OPENED = Path("/proc/self/fdinfo")
_GONE = b"//deleted"  # after the root of a mount whose folder was removed


@dataclass(frozen=True)
class _Mount:
    number: int
    parent: int
    device: bytes
    """Of the file system, as `major:minor`; btrfs tells a file another one than its mounts."""
    root: Path
    """The folder or file of that file system that is seen here."""
    place: Path
    """Where it is seen."""
    gone: bool
    """Whether what is seen has no name any more."""


_Place = tuple[bytes, Path]
"""A device, and a path from the root of its file system."""


def mounted_in(folder: Path) -> list[Path]:
    """Where something is mounted on `folder`, or on a folder or file anywhere below it; the innermost first.

    `folder` itself must not be a link. Where the kernel tells nothing of its mounts, nothing is found.
    """
    real = _real(folder)
    mounts = {mount.number: mount for mount in _table()}
    holding = mounts.get(_holding(folder))
    here = _place_of(real, holding)
    found: set[int] = set()
    waiting = list(mounts.values())
    while inside := [mount for mount in waiting if mount.parent in found or _is_in(mount, mounts, holding, real, here)]:
        found |= {mount.number for mount in inside}
        waiting = [mount for mount in waiting if mount.number not in found]
    places = {mounts[number].place for number in found}
    return sorted(places, key=lambda place: (-len(place.parts), place))


def mounted_from(folder: Path) -> list[Path]:
    """Where else `folder`, or a folder or file in it, is seen: it is the source of a bind mount there. Sorted.

    Who looks through that mount goes on seeing what `folder` was, also when another folder has its name. Only mounts
    that this process can see are found, not those of a container.
    """
    mounts = {mount.number: mount for mount in _table()}
    holding = mounts.get(_holding(folder))
    here = _place_of(_real(folder), holding)
    if here is None:
        return []
    others = [mount for mount in mounts.values() if mount is not holding and not mount.gone]
    return sorted({mount.place for mount in others if _at_or_below((mount.device, mount.root), here)})


def _real(path: Path) -> Path:
    return path.absolute().parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def _place_of(path: Path, mount: _Mount | None) -> _Place | None:
    """Where on its file system `path` lies, if it is that mount in which it is seen."""
    if mount is None or mount.gone or not path.is_relative_to(mount.place):
        return None
    return mount.device, mount.root / path.relative_to(mount.place)


def _is_in(mount: _Mount, mounts: dict[int, _Mount], holding: _Mount | None, real: Path, here: _Place | None) -> bool:
    """Whether it is mounted on or below the folder `real`, which lies `here`; not in what is mounted there in turn."""
    there = _place_of(mount.place, mounts.get(mount.parent))
    if here is None or there is None:
        return mount.place.is_relative_to(real)
    return (mount is holding and mount.place == real) or _at_or_below(there, here)


def _at_or_below(place: _Place, other: _Place) -> bool:
    return place[0] == other[0] and place[1].is_relative_to(other[1])


def _holding(path: Path) -> int:
    """The number of the mount in which `path` is seen; -1 where the kernel does not tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | getattr(os, "O_PATH", 0))
    except OSError:
        return -1
    try:
        found = re.search(rb"^mnt_id:\s*(\d+)", (_OPENED / str(descriptor)).read_bytes(), re.MULTILINE)
    except OSError:
        return -1
    finally:
        os.close(descriptor)
    return int(found[1]) if found else -1


def _table() -> list[_Mount]:
    """See proc_pid_mountinfo(5)."""
    try:
        lines = _TABLE.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, parent, device, root, place = line.split(b" ")[:5]
        shown = root.removesuffix(_GONE)
        found.append(_Mount(int(number), int(parent), device, _path(shown), _path(place), shown != root))
    return found


def _path(escaped: bytes) -> Path:
    """Blanks, line ends and backslashes in names are written as a backslash and three octal digits."""
    return Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), escaped)))
