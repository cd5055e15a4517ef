"""File systems of our own to lose: small ext4 images, and folders in memory that are soon full.

They are mounted in a mount namespace of this process and its children alone. When the last of them is gone, however it
ended, the kernel unmounts what is left and frees the loop devices.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strace_sweeps import Missing

__all__ = ["cut_the_power", "mounted", "new_image", "private", "require_loop", "require_root", "tmpfs"]

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18  # linux/mount.h
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: what is not in the journal on the disk is lost
_namespaces: set[int] = set()


def private() -> None:
    """From now on, what this process mounts is seen by it and its children alone."""
    if os.getpid() in _namespaces:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        raise Missing(f"no mount namespace of its own: {os.strerror(ctypes.get_errno())}")
    _namespaces.add(os.getpid())


def require_root() -> None:
    """Raises `Missing` for a user who may not mount."""
    if os.geteuid() != 0:
        raise Missing("only root may mount file systems")


def require_loop(folder: Path) -> None:
    """Raises `Missing` where an ext4 image cannot be made, mounted and shut down."""
    require_root()
    if shutil.which("mkfs.ext4") is None:
        raise Missing("mkfs.ext4 is not installed")
    try:
        private()
        image = new_image(folder / "trial.img")
        with mounted(image, folder / "trial", "defaults"):
            cut_the_power(folder / "trial")
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise Missing(f"no loop device with ext4: {said.strip()[:80]}") from None


def new_image(path: Path, mib: int = 12) -> Path:
    """An empty ext4 file system in a file."""
    with open(path, "wb") as file:
        file.truncate(mib * 2**20)
    _run("mkfs.ext4", "-qF", "-O", "^resize_inode", "-N", "1024", path)
    return path


@contextmanager
def mounted(image: Path, folder: Path, options: str) -> Iterator[Path]:
    """An image, mounted by a loop device."""
    folder.mkdir(exist_ok=True)
    _run("mount", "-t", "ext4", "-o", f"loop,{options}", image, folder)
    try:
        yield folder
    finally:
        os.chdir("/")
        _run("umount", folder)


@contextmanager
def tmpfs(folder: Path, nbytes: int) -> Iterator[Path]:
    """A folder in memory that holds so many bytes and no more."""
    folder.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", folder)
    try:
        yield folder
    finally:
        os.chdir("/")
        _run("umount", folder)


def cut_the_power(folder: Path) -> None:
    """Nothing more reaches the disk of this mounted ext4, neither data nor journal."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
