"""The real kernel refuses, cuts off or kills: one system call at a time, put in by strace, for every call of a verb.

Each point is a process of its own. It is forked from a warm one and waits; strace takes hold of it there, so that the
count of calls begins where the command does, and not somewhere in the start of Python. strace counts by thread: what is
put in at call N meets the first thread that comes to its own Nth. A short write cannot be made with strace; those are
made in front of the call instead.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import act
from disk import installed
from judgement import Tally, judge
from scenes import Scene
from worlds import copied

__all__ = ["CALLS", "Fault", "Missing", "counted", "faults_of", "lies_of", "shortened", "swept", "usable"]

CALLS = (
    "mkdir,mkdirat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,ftruncate,fallocate,"
    "link,linkat,symlink,chmod,fchmod,fchmodat,chown,fchown,fsetxattr,utimensat,flock"
)
"""Those that change a disk, or take a lock."""
READING = "openat,read,pread64"
"""Those by which a failing disk shows itself to a reader."""
_WRITES = ("write", "pwrite64")
_LINE = re.compile(r"^(\d+)\s+(?:<\.\.\. )?(\w+)(?:\(| resumed).*\)\s+= (-?\d+)")


_said = mmap.mmap(-1, 4096)


class Missing(Exception):
    """What is needed is not here."""


@dataclass(frozen=True)
class Fault:
    """One injection: `call`, its number `at` from 1, and what strace is to do."""

    call: str
    at: int
    what: str

    def __str__(self) -> str:
        return f"{self.what} at {self.call} {self.at}"

    @property
    def injected(self) -> str:
        """As strace wants it."""
        what, _, when = self.what.partition(" ")
        return f"inject={self.call}:{what}:when={self.at}{'+' if when == 'from then on' else ''}"


def usable() -> None:
    """Raises `Missing` where strace is not here, or may not trace."""
    if shutil.which("strace") is None:
        raise Missing("strace is not installed")
    tried = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        raise Missing(f"strace may not trace here: {tried.stderr.strip()[:80]}")


def counted(scene: Scene, world: Path, calls: str = CALLS) -> dict[str, list[int]]:
    """What every call returns, by name and in order, where nothing is put in; of the thread that makes most of them."""
    copied(scene.template, world)
    with tempfile.NamedTemporaryFile("r") as log:
        status = _traced(scene, world, [f"trace={calls}"], log.name)
        text = log.read()
    if status != act.SUCCESS:
        raise RuntimeError(f"{scene.name} fails under strace with nothing wrong: {status}")
    found: dict[str, dict[str, list[int]]] = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            found.setdefault(match[2], {}).setdefault(match[1], []).append(int(match[3]))
    return {call: max(threads.values(), key=len) for call, threads in found.items()}


def faults_of(calls: dict[str, list[int]], whats: tuple[str, ...]) -> list[Fault]:
    """Each of `whats` at every one of these calls."""
    return [
        Fault(call, at + 1, what) for what in whats for call, results in calls.items() for at in range(len(results))
    ]


def lies_of(calls: dict[str, list[int]]) -> list[Fault]:
    """Every write in turn says that it wrote all of its bytes, or half of them, and wrote none."""
    found = []
    for call in _WRITES:
        for at, nbytes in enumerate(calls.get(call, ())):
            found += [Fault(call, at + 1, f"retval={nbytes}"), Fault(call, at + 1, f"retval={max(1, nbytes // 2)}")]
    return found


def swept(scene: Scene, faults: list[Fault], world: Path, *, again: int = 4) -> Tally:
    """Judge every fault; every `again`-th has its command run again."""
    tally = Tally()
    for number, fault in enumerate(faults):
        copied(scene.template, world)
        status = _traced(scene, world, [f"trace={fault.call}", fault.injected], "/dev/null")
        said = f"strace: {fault}"
        lying = fault.what.startswith("retval")
        killed = fault.what.startswith("signal")
        if killed and status != -9:
            tally.fault("stuck", f"{scene.name}, {said}: it was not killed ({status})")
        if words := _said[:].rstrip(b"\0").decode(errors="replace"):
            said += f" ({words})"
        judge(tally, scene, world, said, status=None if killed else status, detected=lying, again=number % again == 0)
    return tally


def _traced(scene: Scene, world: Path, expressions: list[str], log: str) -> int:
    """Run the verb in a process of its own, under strace; its exit status, negative for a signal."""
    reader, writer = os.pipe()
    _said[:] = bytes(len(_said))
    child = os.fork()
    if child == 0:
        os.close(writer)
        status = 12
        try:
            os.read(reader, 1)
            status, words = act.perform(scene.verb.name, world, scene.plan)
            said = words.encode()[: len(_said)]
            _said[: len(said)] = said  # into shared memory: that is no call that strace would count
        finally:
            os._exit(status)
    os.close(reader)
    arguments = [part for expression in expressions for part in ("-e", expression)]
    command = ["strace", "-f", "-a1", "-s0", "-e", "signal=none", *arguments, "-o", log, "-p", str(child)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        line = strace.stderr.readline()
        if "attached" not in line:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise Missing(f"strace cannot take hold of a process: {line.strip()[:80]}")
        os.write(writer, b"1")
        os.close(writer)
        _, ended = os.waitpid(child, 0)
        strace.stderr.read()
    return os.waitstatus_to_exitcode(ended)


def shortened(scene: Scene, world: Path, *, again: int = 4) -> Tally:
    """Every write in turn writes one byte, or all but one, and says so; then all of them at once."""
    tally = Tally()
    for at in range(_writes(scene, world) + 1):
        for said, left in (("one byte", 1), ("all but one", -1)):
            copied(scene.template, world)
            with installed(_Short(at, left)):
                status, words = act.perform(scene.verb.name, world, scene.plan)
            where = f"write {at} is short, {said}" if at else "every write is short"
            if status != act.SUCCESS:
                tally.fault("stuck", f"{scene.name}, {where}: {words}")
            judge(tally, scene, world, where, status=status, again=at % again == 0)
    return tally


@dataclass
class _Short:
    """A hook that cuts write `at` to its first `left` bytes; at 0 it cuts all of them to a half."""

    at: int
    left: int
    writes: int = 0

    def __call__(self, number: int, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name in ("write", "pwrite"):
            self.writes += 1
            data = memoryview(arguments[1]).cast("B")
            if self.at in (0, self.writes) and len(data) > 1:
                cut = data[: self.left] if self.at else data[: len(data) // 2]
                return real(arguments[0], cut, *arguments[2:])
        return real(*arguments)


def _writes(scene: Scene, world: Path) -> int:
    copied(scene.template, world)
    with installed(lambda number, name, real, arguments: real(*arguments)) as seen:
        act.perform(scene.verb.name, world, scene.plan)
    return sum(name in ("write", "pwrite") for name in seen)


ERRORS = tuple(
    f"error={errno.errorcode[code]}{when}" for code in (errno.ENOSPC, errno.EIO) for when in ("", " from then on")
)
"""A full disk and a broken one, once and from then on."""
KILL = ("signal=KILL",)
READ_ERRORS = ("error=EIO",)
