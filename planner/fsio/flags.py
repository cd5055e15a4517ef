"""Flags of files by which nobody may remove them, whatever their mode: `chattr +i` and `chattr +a`."""

from __future__ import annotations

import fcntl
import os
import platform
import struct
from pathlib import Path

__all__ = ["fixed"]

# linux/fs.h: FS_IOC_GETFLAGS is _IOR('f', 1, long), though what is written is an int.
_READS = 0x40000000 if platform.machine().startswith(("ppc", "mips", "sparc", "alpha")) else 0x80000000
_GET_FLAGS = _READS | struct.calcsize("l") << 16 | ord("f") << 8 | 1
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20


def fixed(path: Path) -> str:
    """How a file or folder is fixed: "immutable" or "append-only". Empty if it is not, or if that cannot be known.

    Neither may be removed, renamed or have its bytes overwritten, not even by root; nor what is in such a folder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        (flags,) = struct.unpack_from("i", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
    except OSError:  # a file system without such flags
        return ""
    finally:
        os.close(descriptor)
    return "immutable" if flags & _IMMUTABLE else "append-only" if flags & _APPEND_ONLY else ""
