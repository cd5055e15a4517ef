"""One writer at a time.

A lock is a file that its holder has locked with flock(2): the kernel lets go of it when the holder dies, however it
dies, in whatever container it ran. Where a file system knows no flock, the file alone is the lock, and what is written
in it tells whether its holder is still there: the boot of the machine, the space of process numbers (a container has
its own), the process, and when it began.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from planner.errors import Locked, StorageError
from planner.fsio import calls
from planner.fsio.failures import storage_errors

__all__ = ["Holder", "lock"]

_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_LONGEST = 4096
_TIME_TO_WRITE = 60.0  # seconds after which a lock file that says nothing is one of nobody


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    process: int
    began: str
    """When, in ticks since the boot: numbers of processes are given out again."""
    boot: str
    """Which boot of which machine."""
    space: str
    """Which space of process numbers."""
    host: str
    """What the machine calls itself."""
    since: str
    """When it took the lock, UTC."""

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(os.getpid(), "".join(_stat("self")[19:20]), _boot(), _space(), platform.node(), now)

    @classmethod
    def read(cls, text: bytes) -> Holder | None:
        """As a lock file says; None if it says nothing that can be understood."""
        try:
            holder = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return None
        words = [getattr(holder, field.name) for field in fields(cls)][1:]
        sound = type(holder.process) is int and 0 < holder.process < 2**31
        return holder if sound and all(isinstance(word, str) and word.isprintable() for word in words) else None

    def gone(self) -> bool:
        """Whether it is certain that the process is no more."""
        boot = _boot()
        if not boot or not self.boot:
            return False
        if self.boot != boot:
            # The machine was started again since; or it is another machine that has this file system mounted as well.
            return self.host == platform.node()
        return self.space == _space() and not _runs(self.process, self.began)

    def __str__(self) -> str:
        elsewhere = f" on {self.host}" if self.boot != _boot() else " in another container" * (self.space != _space())
        return f"process {self.process}{elsewhere}, since {self.since},"


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` for the duration. Raises `Locked`, naming the holder, if another process has it.

    The descriptor is close-on-exec: a child process that inherited it would keep the lock after its parent was killed.
    """
    descriptor = _locked_descriptor(path)
    try:
        yield
    finally:
        try:
            with suppress(OSError):
                calls.unlink(path)
        finally:
            os.close(descriptor)


def _locked_descriptor(path: Path) -> int:
    while True:
        with storage_errors(path):
            descriptor, made = _opened(path)
            taken = False
            try:
                taken = _taken(descriptor, path, made)
            finally:
                if not taken:
                    os.close(descriptor)
        if taken:
            return descriptor


def _opened(path: Path) -> tuple[int, bool]:
    """The lock file, opened, and whether it was made for that."""
    while True:
        with suppress(FileExistsError):
            return calls.take_lock(path), True
        with suppress(FileNotFoundError):  # who had it left in the meantime
            _refuse_other(path, path.lstat())
            descriptor = calls.open_to_write(path)
            try:
                _refuse_other(path, os.fstat(descriptor))
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor, False


def _refuse_other(path: Path, found: os.stat_result) -> None:
    """Raise `StorageError` for what is no lock file: the holder's name would be written over somebody's bytes."""
    if stat.S_ISREG(found.st_mode) and found.st_nlink < 2:  # none: who had it left in the meantime
        return
    what = "is a file with other names (hard links)" if stat.S_ISREG(found.st_mode) else "is not a regular file"
    name = shlex.quote(str(path))
    raise StorageError(
        f"{path} {what}, so it is no lock of this program",
        hint=f"move it away (`mv -n {name} {name}.moved`), then run the command again",
    )


def _taken(descriptor: int, path: Path, made: bool) -> bool:
    """Take the lock on the open file; False if another attempt may succeed. Raises `Locked`, and OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _at_work(os.pread(descriptor, _LONGEST, 0), path) from None
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        if made:
            _say_who(descriptor, path, needed=True)
            return _is_named(descriptor, path)
        _free(path)
        return False
    # Whoever held the lock before may have removed the name between our open and our flock; then the lock we hold
    # is on a file that nobody else will find.
    if not _is_named(descriptor, path):
        return False
    _say_who(descriptor, path, needed=False)
    return True


def _say_who(descriptor: int, path: Path, *, needed: bool) -> None:
    """Write down who we are. With flock that is for people, and may fail: a full disk must not stop `recover`."""
    text = json.dumps(asdict(Holder.here())).encode()
    try:
        calls.truncate(descriptor, 0)
        if calls.write(descriptor, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if needed:
            calls.fsync(descriptor)  # over a network, others see it only then
    except BaseException as error:
        if needed or not isinstance(error, OSError):
            with suppress(OSError):
                calls.unlink(path)
            raise
        # Half of it would name nobody, and what stood there before names somebody else.
        with suppress(OSError):
            calls.truncate(descriptor, 0)


def _is_named(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    return False


def _free(path: Path) -> None:
    """Remove a lock that nobody holds, on a file system without flock. Raises `Locked` if somebody may hold it.

    Who removes it holds a second lock: else what is removed could be the lock of somebody who was faster.
    """
    with suppress(FileNotFoundError):
        _refuse_if_held(path)
        with lock(path.with_name(f"{path.name}-takeover")):
            _refuse_if_held(path)
            calls.unlink(path)


def _refuse_if_held(path: Path) -> None:
    with path.open("rb") as file:
        text = file.read(_LONGEST)
    holder = Holder.read(text)
    # What says nothing was made a moment ago, or by a process that was killed a moment later.
    if not holder.gone() if holder else time.time() - path.stat().st_mtime < _TIME_TO_WRITE:
        raise _at_work(text, path, f"; if it is known to be no more, remove {path} first")


def _at_work(text: bytes, path: Path, otherwise: str = "") -> Locked:
    return Locked(
        f"{Holder.read(text) or 'another process'} is at work here ({path})",
        hint=f"wait until it has finished, then run the command again{otherwise}",
    )


def _runs(process: int, began: str) -> bool:
    """Whether the process of that number may be the one that began then. Asked in its own space of numbers."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's, whose /proc may be hidden from us
        pass
    state = _stat(str(process)) if _proc_is_ours() else []
    if not state:
        return True
    ended = state[0] in "ZX" and state[17] == "1"  # it only waits for its parent to ask how it ended
    return not ended and began in ("", state[19])


def _stat(process: str) -> list[str]:
    """The fields of /proc/PROCESS/stat from the third on (proc_pid_stat(5)); none where it cannot be read."""
    try:
        found = Path("/proc", process, "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    return found if len(found) > 19 else []


def _proc_is_ours() -> bool:
    """False in a container that sees the /proc of the machine, whose numbers are others."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
