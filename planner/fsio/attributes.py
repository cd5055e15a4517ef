"""What a file or folder has beside its bytes and names: owner, mode, extended attributes, times."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from planner.fsio import calls

__all__ = ["copy_attributes"]

_NOT_KEPT_HERE = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL)


def copy_attributes(reader: int, writer: int, *, more: int = 0) -> None:
    """Owner, mode and extended attributes of one open file or folder to another, with `more` bits of mode.

    May raise OSError. Not the times: who compares size and time, as rsync does, must see that the bytes are others.
    """
    found, now = os.fstat(reader), os.fstat(writer)
    if (now.st_uid, now.st_gid) != (found.st_uid, found.st_gid):
        with suppress(PermissionError):  # only root may give files away
            calls.chown(writer, found.st_uid, found.st_gid)
    _copy_extended(reader, writer)
    calls.chmod(writer, stat.S_IMODE(found.st_mode) | more)


def _copy_extended(reader: int, writer: int) -> None:
    try:
        names = os.listxattr(reader)
    except OSError:  # a file system without them
        return
    for name in names:
        try:
            calls.setxattr(writer, name, os.getxattr(reader, name))
        except OSError as error:  # attributes of the system are not ours to set; the file system may know none
            if error.errno not in _NOT_KEPT_HERE:
                raise
