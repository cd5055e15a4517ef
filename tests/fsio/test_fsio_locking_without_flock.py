"""Locks on a file system without flock: what is written in the file decides, and of two only one takes it over."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from disks import AS_ROOT, fails, forked, recorded
from hypothesis import example, given
from hypothesis import strategies as st
from lock_holders import REPOSITORY, held, is_free, without_flock

from planner import fsio
from planner.errors import Locked, StorageError
from planner.fsio import calls, locking
from planner.fsio.locking import Holder


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_flock_the_file_alone_is_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    without_flock(monkeypatch, number)
    made = recorded(monkeypatch, "take_lock", "fsync", "unlink")
    assert is_free(path)
    assert [name for name, _ in made] == ["take_lock", "fsync", "unlink"]


@pytest.mark.parametrize("call", ["write", "truncate", "fsync"])
def test_without_flock_a_lock_that_cannot_say_whose_it_is_is_not_taken(
    path: Path, no_flock: None, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be taken for one of nobody, and somebody else would work beside us."""
    with monkeypatch.context() as patch:
        fails(patch, call, errno.ENOSPC)
        with pytest.raises(StorageError), fsio.lock(path):
            pytest.fail("locked")
    with monkeypatch.context() as patch:
        real = calls.write
        patch.setattr(calls, "write", lambda descriptor, data: real(descriptor, data[:20]))
        with pytest.raises(StorageError), fsio.lock(path):
            pytest.fail("locked")
    assert is_free(path)


def _dead() -> int:
    """The number of a process that was."""
    child = forked(lambda: None)
    os.waitpid(child, 0)
    return child


OTHER_BOOT = "00000000-1111-2222-3333-444444444444"
GONE: dict[str, Callable[[], dict[str, Any]]] = {
    "a dead process": lambda: {"process": _dead()},
    "a number given out again": lambda: {"began": "1"},
    "an earlier boot": lambda: {"boot": OTHER_BOOT},
    "an earlier boot, in a container": lambda: {"boot": OTHER_BOOT, "space": "pid:[1]"},
}
THERE: dict[str, Callable[[], dict[str, Any]]] = {
    "this process": lambda: {},
    "another live process": lambda: {"process": os.getppid(), "began": _began(os.getppid())},
    "one whose beginning nobody knows": lambda: {"began": ""},
    "another machine": lambda: {"boot": OTHER_BOOT, "host": "elsewhere", "process": _dead()},
    "a machine that knows no boots": lambda: {"boot": "", "process": _dead()},
    "another container": lambda: {"space": "pid:[1]", "process": _dead()},
}


def _began(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]


def _left_by(path: Path, **changes: Any) -> bytes:
    path.write_text(json.dumps(asdict(Holder.here()) | changes))
    os.utime(path, (0, 0))  # its age says nothing
    return path.read_bytes()


@pytest.mark.parametrize("changes", GONE.values(), ids=GONE)
def test_without_flock_the_lock_of_a_process_that_is_no_more_is_taken_over(
    path: Path, no_flock: None, changes: Callable[[], dict[str, Any]]
) -> None:
    _left_by(path, **changes())
    assert is_free(path)


@pytest.mark.parametrize("changes", THERE.values(), ids=THERE)
def test_without_flock_the_lock_of_a_process_that_may_be_there_is_respected(
    path: Path, no_flock: None, changes: Callable[[], dict[str, Any]]
) -> None:
    text = _left_by(path, **changes())
    with pytest.raises(Locked) as caught, fsio.lock(path):
        pytest.fail("locked twice")
    assert path.read_bytes() == text
    assert os.listdir(path.parent) == ["lock"]
    holder = Holder.read(text)
    assert holder
    assert f"process {holder.process}" in caught.value.message
    if holder.host != platform.node():
        assert "on elsewhere" in caught.value.message
    elif holder.space != Holder.here().space:
        assert "in another container" in caught.value.message


def test_without_flock_a_lock_that_says_nothing_is_respected_for_a_minute(path: Path, no_flock: None) -> None:
    """Who made it is about to say who it is, or was killed before it could."""
    for text in (b"", b"{", b"123\n"):
        path.write_bytes(text)
        os.utime(path, (time.time() - 30,) * 2)
        with pytest.raises(Locked, match="another process"), fsio.lock(path):
            pytest.fail("locked twice")
        os.utime(path, (time.time() - 90,) * 2)
        assert is_free(path)


@AS_ROOT
def test_without_flock_a_process_of_another_user_is_respected(path: Path, no_flock: None) -> None:
    """It may not be sent signals, and its /proc may be hidden."""
    _left_by(path)
    path.chmod(0o666)

    def work() -> None:
        os.setresuid(65534, 65534, 65534)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(locking, "_stat", lambda process: [])
            holder = Holder.read(text)
            assert holder
            assert not holder.gone()
        assert not holder.gone()

    text = path.read_bytes()
    assert os.waitpid(forked(work), 0)[1] == 0


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
@example(b"[" * 100_000)
@example(json.dumps(asdict(Holder.here()) | {"process": "../../etc"}).encode())
@example(json.dumps(asdict(Holder.here()) | {"process": -1}).encode())
@example(json.dumps(asdict(Holder.here()) | {"process": True}).encode())
@example(json.dumps(asdict(Holder.here()) | {"process": 10**30}).encode())
@example(json.dumps(asdict(Holder.here()) | {"host": None}).encode())
@example(json.dumps(asdict(Holder.here()) | {"host": "\x1b[2J"}).encode())
@example(json.dumps(asdict(Holder.here()) | {"more": 1}).encode())
def test_what_says_nothing_sensible_names_nobody(text: bytes) -> None:
    assert Holder.read(text) is None


@given(
    st.builds(
        Holder,
        process=st.integers(1, 2**31 - 1),
        began=st.integers(0).map(str),
        boot=st.uuids().map(str),
        space=st.integers(0).map("pid:[{}]".format),
        host=st.from_regex(r"[a-z0-9.-]{1,63}", fullmatch=True),
        since=st.datetimes().map(str),
    )
)
def test_what_a_holder_writes_it_is_known_by(holder: Holder) -> None:
    assert Holder.read(json.dumps(asdict(holder)).encode()) == holder


TWICE = """
import errno, fcntl, os, signal, sys
from pathlib import Path
from planner import fsio
from planner.errors import Locked

def no_flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

fcntl.flock = no_flock
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    with fsio.lock(Path(sys.argv[1])):
        os.write(writing, b"x")
        signal.pause()
assert os.read(reading, 1) == b"x"
try:
    with fsio.lock(Path(sys.argv[1])):
        print("locked twice")
except Locked as error:
    assert f"process {child}, since" in error.message, error.message
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
with fsio.lock(Path(sys.argv[1])):
    print("taken over")
"""


def test_inside_a_container_holders_are_told_apart_as_well(path: Path, container: list[str]) -> None:
    """Also where /proc is that of the machine, whose numbers mean other processes."""
    command = [*container, sys.executable, "-c", TWICE, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (found.stdout, found.stderr) == ("taken over\n", "")


STALE: dict[str, Callable[[Path], object]] = {
    "of a dead process": lambda path: _left_by(path, began="1"),
    "that says nothing": lambda path: (path.touch(), os.utime(path, (0, 0))),
}


@pytest.mark.parametrize("leave", STALE.values(), ids=STALE)
def test_of_two_that_race_for_a_stale_lock_exactly_one_wins(
    path: Path, no_flock: None, leave: Callable[[Path], object]
) -> None:
    for _ in range(50):
        leave(path)
        go, start = os.pipe()
        seen, say = os.pipe()
        done, finish = os.pipe()

        def work(pipes: tuple[int, ...] = (go, start, say, done, finish)) -> None:
            go, start, say, done, finish = pipes
            os.close(start)
            os.close(finish)
            os.read(go, 1)  # all start when the pipe closes
            try:
                with fsio.lock(path):
                    os.write(say, b"W")
                    os.read(done, 1)  # held until the other has tried
            except Locked:
                os.write(say, b"L")

        children = [forked(work) for _ in range(2)]
        for end in (go, start, say, done):
            os.close(end)
        first, second = os.read(seen, 1), os.read(seen, 1)
        os.close(finish)
        assert {os.waitpid(child, 0)[1] for child in children} == {0}
        os.close(seen)
        assert sorted([first, second]) == [b"L", b"W"]
        assert os.listdir(path.parent) == []


def test_who_read_a_stale_lock_before_somebody_took_it_over_does_not_take_it_away(
    path: Path, monkeypatch: pytest.MonkeyPatch, no_flock: None
) -> None:
    """The slow one judged what is not there any more."""
    _left_by(path, began="1")
    real, rivals = Holder.gone, []

    def slow(self: Holder) -> bool:
        found = real(self)
        if not rivals:
            rivals.append(held(path))
            monkeypatch.setattr(Holder, "gone", real)
            rivals.append(rivals[0].__enter__())
        return found

    monkeypatch.setattr(Holder, "gone", slow)
    try:
        with pytest.raises(Locked, match="process"), fsio.lock(path):
            pytest.fail("locked twice")
        holder = Holder.read(path.read_bytes())
        assert holder
        assert holder.process == rivals[1]
        assert os.listdir(path.parent) == ["lock"]
    finally:
        rivals[0].__exit__(None, None, None)


@pytest.mark.parametrize("call", ["take_lock", "truncate", "write", "fsync", "unlink"])
def test_a_process_killed_while_it_takes_over_locks_nobody_out(path: Path, no_flock: None, call: str) -> None:
    """At each call on the way, the first time and the second: for the second lock, and then for the first."""
    for at in (1, 2, 3):
        _left_by(path, began="1")

        def work(at: int = at) -> None:
            real, left = getattr(calls, call), at

            def killed(*arguments: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            setattr(calls, call, killed)
            with fsio.lock(path):
                pass

        status = os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])
        assert status in (-signal.SIGKILL, 0)
        assert status or at == 3
        for leftover in path.parent.iterdir():
            os.utime(leftover, (0, 0))  # a minute passes
        with fsio.lock(path), pytest.raises(Locked), fsio.lock(path):
            pytest.fail("locked twice")
        assert os.listdir(path.parent) in ([], ["lock-takeover"])
        for leftover in path.parent.iterdir():
            leftover.unlink()
