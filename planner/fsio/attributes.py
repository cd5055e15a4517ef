"""What a file or folder has beside its bytes and names: owner, mode, extended attributes, times."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from planner.fsio import calls

__all__ = ["copy_attributes", "drop_inherited"]

_NOT_KEPT_HERE = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL)
_ACCESS = ("system.posix_acl_access", "system.posix_acl_default")
"""Who else may read: what is made in a folder with default entries has them from there."""


def copy_attributes(reader: int, writer: int, *, more: int = 0) -> None:
    """Owner, mode and extended attributes of one open file or folder to another, with `more` bits of mode.

    What the other has of its own, as access control lists from the folder it was made in, is removed before the mode
    lets anybody in. Not the times: who compares size and time, as rsync does, must see that the bytes are others.
    May raise OSError.
    """
    found, now = os.fstat(reader), os.fstat(writer)
    if (now.st_uid, now.st_gid) != (found.st_uid, found.st_gid):
        with suppress(PermissionError):  # only root may give files away
            calls.chown(writer, found.st_uid, found.st_gid)
    _copy_extended(reader, writer)
    calls.chmod(writer, stat.S_IMODE(found.st_mode) | more)


def _copy_extended(reader: int, writer: int) -> None:
    names = _extended(reader)
    for name in _extended(writer):
        if name not in names:
            _remove(writer, name)
    for name in names:
        try:
            calls.setxattr(writer, name, os.getxattr(reader, name))
        except OSError as error:  # attributes of the system are not ours to set; the file system may know none
            if error.errno not in _NOT_KEPT_HERE:
                raise


def drop_inherited(descriptor: int) -> None:
    """Remove the access control lists that something new has from the folder it was made in. May raise OSError.

    What is made in it then inherits nothing either.
    """
    for name in _extended(descriptor):
        if name in _ACCESS:
            _remove(descriptor, name)


def _remove(descriptor: int, name: str) -> None:
    try:
        calls.removexattr(descriptor, name)
    except OSError as error:
        # Labels of the system stay; a list that stays would let somebody read.
        if error.errno != errno.ENODATA and (name in _ACCESS or error.errno not in _NOT_KEPT_HERE):
            raise


def _extended(descriptor: int) -> list[str]:
    try:
        return os.listxattr(descriptor)
    except OSError:  # a file system without them
        return []
