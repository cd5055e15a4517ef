"""What would stay behind: a change in place ends with the removal of the old folder, and that must be possible.

After the switch of names it is too late to find out: the change is made, and what is left of the old folder stops every
later command. So all that could keep this user from removing it is looked for before anything is created.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

from planner import fsio
from planner.errors import ReadOnly, UnsafeInPlace
from planner.transaction.state import LEDGER_FOLDER

__all__ = ["refuse_unremovable"]


def refuse_unremovable(path: Path, *, locked: bool, otherwise: str) -> None:
    """Raise `UnsafeInPlace` or `ReadOnly` for a folder that this user could not remove with all that is in it.

    `otherwise` is what to do instead, for the hint. Without the lock (`locked` is False) the search ends where
    something is gone when it is looked at: all of it is looked at again under the lock.
    """
    parent = path.absolute().parent
    with fsio.storage_errors(path), nullcontext() if locked else suppress(FileNotFoundError):
        own = path.stat()
        for folder in (parent, path):
            _refuse_fixed(folder, otherwise)
        _refuse_kept(parent.stat(), path, own, otherwise)
        for place, found, around in _entries(path):
            if stat.S_ISDIR(found.st_mode) and found.st_dev != own.st_dev:
                raise UnsafeInPlace(
                    f"another file system is mounted on {place}, and is no part of the checkpoint", hint=otherwise
                )
            if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode):
                _refuse_fixed(place, otherwise)
            _refuse_kept(around, place, found, otherwise)
            if place.relative_to(path).parts[0] == LEDGER_FOLDER:
                _refuse_closed(path / LEDGER_FOLDER, place, found, locked)


def _entries(path: Path) -> Iterator[tuple[Path, os.stat_result, os.stat_result]]:
    """Everything below `path`, parents first: where it is, what it is, and what the folder is that it is in."""
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        around = folder.stat()
        with os.scandir(folder) as entries:
            places = sorted(folder / entry.name for entry in entries)
        for place in places:
            found = place.lstat()
            yield place, found, around
            if stat.S_ISDIR(found.st_mode):
                waiting.append(place)


def _refuse_fixed(place: Path, otherwise: str) -> None:
    if how := fsio.fixed(place):
        raise UnsafeInPlace(
            f"{place} is {how}, so it can be neither replaced nor removed",
            hint=f"`sudo chattr -i -a {shlex.quote(str(place))}` allows it again; or {otherwise}",
        )


def _refuse_kept(folder: os.stat_result, place: Path, found: os.stat_result, otherwise: str) -> None:
    user = os.geteuid()
    if folder.st_mode & stat.S_ISVTX and user not in (0, folder.st_uid, found.st_uid):
        raise UnsafeInPlace(
            f"{place} is somebody else's, in a folder with the sticky bit, where each may remove only their own",
            hint=otherwise,
        )


def _refuse_closed(ledger: Path, place: Path, found: os.stat_result, locked: bool) -> None:
    """What the planner made for another user, as under sudo, is to be read, and its folders are to be removed."""
    folder = stat.S_ISDIR(found.st_mode)
    if os.access(place, os.R_OK | os.W_OK | os.X_OK if folder else os.R_OK) or not (locked or os.path.lexists(place)):
        return
    name = shlex.quote(str(ledger))
    if found.st_uid == os.geteuid():
        raise ReadOnly(f"{place} is closed to its owner", hint=f"open the ledger again: `chmod -R u+rwX {name}`")
    raise ReadOnly(
        f"{place} is somebody else's, so the ledger could not be replaced",
        hint=f"take it over: `sudo chown -R {_user()} {name}`",
    )


def _user() -> str:
    try:
        return shlex.quote(pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:  # a number without a name, as in containers
        return str(os.geteuid())
