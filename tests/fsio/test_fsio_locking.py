"""One writer at a time, with flock and without."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from disks import fails
from lock_holders import REPOSITORY, held, is_free, without_flock

from planner import fsio
from planner.errors import Locked, StorageError
from planner.fsio import calls
from planner.fsio.locking import Holder

EITHER_WAY = pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])


@EITHER_WAY
def test_a_lock_names_its_holder_and_goes_away(path: Path, flock: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not flock:
        without_flock(monkeypatch)
    with fsio.lock(path):
        with pytest.raises(Locked, match=rf"process {os.getpid()}, since 2\d\d\d-.*Z, ") as caught, fsio.lock(path):
            pytest.fail("locked twice")
        assert caught.value.exit_status == 8
        assert str(path) in caught.value.message
        assert ("remove" in caught.value.hint) != flock  # only then could a dead one be in the way
        assert Holder.read(path.read_bytes())
    assert not path.exists()
    assert is_free(path)


@EITHER_WAY
def test_a_lock_of_another_process_holds_until_it_is_killed(
    path: Path, flock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flock:
        without_flock(monkeypatch)
    with held(path) as child:
        with pytest.raises(Locked, match=f"process {child}, "), fsio.lock(path):
            pytest.fail("locked twice")
        assert not is_free(path)
    assert path.exists()  # kill -9 tidies nothing up
    assert is_free(path)


@EITHER_WAY
def test_a_killed_holder_locks_nobody_out_before_its_parent_has_asked_for_it(
    path: Path, flock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without an init, nobody ever asks."""
    if not flock:
        without_flock(monkeypatch)
    with held(path) as child:
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert is_free(path)


def test_what_a_lock_file_says_locks_nobody_out_where_there_is_flock(path: Path) -> None:
    for text in (b"", b"123\n", json.dumps(asdict(Holder.here())).encode()):
        path.write_bytes(text)
        assert is_free(path)


def test_a_lock_whose_file_is_removed_between_open_and_flock_is_taken_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = fcntl.flock, 0

    def flock(descriptor: int, operation: int) -> None:
        nonlocal tried
        tried += 1
        if tried == 1:
            path.unlink()  # the previous holder leaves
        if tried == 2:
            path.unlink()  # and the next one comes and takes the name
            path.write_text("1")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with fsio.lock(path):
        holder = Holder.read(path.read_bytes())
        assert holder
        assert holder.process == os.getpid()
    assert tried == 3


def test_a_holder_that_leaves_while_we_open_is_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()
    real = calls.open_to_write

    def late(name: Path) -> int:
        name.unlink()
        return real(name)

    monkeypatch.setattr(calls, "open_to_write", late)
    assert is_free(path)


def test_a_lock_can_be_taken_on_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing could ever clean up what filled it."""
    fails(monkeypatch, "write", errno.ENOSPC)
    with fsio.lock(path), pytest.raises(Locked, match="another process is"), fsio.lock(path):
        pytest.fail("locked twice")
    assert not path.exists()


def test_half_a_sentence_names_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the middle of it; or what stood there is longer."""
    path.write_bytes(b"x" * 10_000)
    real = calls.write
    monkeypatch.setattr(calls, "write", lambda descriptor, data: real(descriptor, data[:20]))
    with fsio.lock(path):
        assert path.read_bytes() == b""


@EITHER_WAY
@pytest.mark.parametrize("call", ["truncate", "write", "unlink"])
def test_an_interrupted_lock_is_not_held_any_longer(
    path: Path, flock: bool, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    if not flock:
        without_flock(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the fault hits on leaving
        fails(patch, call, KeyboardInterrupt())
        with fsio.lock(path):
            pass
    if call != "unlink":
        assert not path.exists()
    elif not flock:
        path.unlink()  # Ctrl-C ends the process whose number it bears; this one goes on
    assert is_free(path)


def test_a_lock_is_not_inherited_by_a_child_process(path: Path) -> None:
    with fsio.lock(path):
        own = [int(name) for name in os.listdir("/dev/fd")]
        inheritable = [number for number in own if number > 2 and _same(number, path)]
        assert inheritable
        assert not any(os.get_inheritable(number) for number in inheritable)


def _same(descriptor: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADF, errno.ENOMEM])
def test_a_lock_that_fails_is_a_storage_error(path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    without_flock(monkeypatch, number)
    with pytest.raises(StorageError, match="lock"), fsio.lock(path):
        pytest.fail("locked")


def test_a_lock_needs_a_folder_and_follows_no_link(path: Path) -> None:
    with pytest.raises(StorageError, match="missing"), fsio.lock(path.parent / "missing" / "lock"):
        pytest.fail("locked")
    path.symlink_to("precious")
    (path.parent / "precious").write_bytes(b"precious")
    with pytest.raises(StorageError), fsio.lock(path):
        pytest.fail("locked")
    assert (path.parent / "precious").read_bytes() == b"precious"


HOLD = """
import errno, fcntl, signal, sys
from pathlib import Path
from planner import fsio

def no_flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

if sys.argv[2] == "no flock":
    fcntl.flock = no_flock
with fsio.lock(Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


@EITHER_WAY
def test_a_holder_in_another_container_is_named_and_respected(
    path: Path, flock: bool, container: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it is process 1, and here that is quite another one."""
    if not flock:
        without_flock(monkeypatch)
    command = [*container, sys.executable, "-c", HOLD, str(path), "flock" if flock else "no flock"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=REPOSITORY) as held:
        try:
            assert held.stdout
            assert held.stdout.readline() == b"held\n"
            with pytest.raises(Locked, match="process 1 in another container, since"), fsio.lock(path):
                pytest.fail("locked twice")
        finally:
            held.kill()
    if flock:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the one in the container dies a moment after the one that made it
        assert is_free(path)
    else:
        assert not is_free(path)  # nobody here can know
