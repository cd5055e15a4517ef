"""Places where nothing is written: refused at once, with what to do instead, and nothing made, changed or touched."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_disks import AS_ROOT, NOBODY, as_nobody, mounted, tmpfs
from snapshots import approved_plan, change, files, scale, small_model, untouched

from planner.errors import PlannerError, ReadOnly, StorageError, UnsafeInPlace
from planner.fsio import calls
from planner.plan import Policy
from planner.transaction import apply_plan, revert, verify
from planner.transaction.types import Receipt

EDIT = scale(1.5, layers="0-1")
WAYS = pytest.mark.parametrize("low", [False, True], ids=["two copies", "low space"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where a user may write."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _out_of(error: PlannerError) -> Path:
    found = re.search(r"--out (\S+)", error.hint or "")
    assert found, error.hint
    return Path(found[1])


def _refused(
    model: Path, *, low: bool = False, out: Path | None = None, kind: type[StorageError] = UnsafeInPlace, said: str = ""
) -> Path:
    """Apply is refused and touches nothing, and what its hint says works; the result."""
    world = (model.parent, Path.cwd(), *([out.parent] if out else []))
    plan = approved_plan(model, EDIT)
    before = untouched(*world)
    with pytest.raises(kind, match=said) as caught:
        apply_plan(plan, model, out=out, policy=Policy(), by="tester", low_space=low)
    assert untouched(*world) == before
    result = _out_of(caught.value)
    old = files(model)
    apply_plan(plan, model, out=result, policy=Policy(), by="tester")
    assert verify(result).sound
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in result.rglob("*") if path.is_file())
    assert files(model) == old
    return result


def _snapshot(repository: Path) -> Path:
    """As the hub's library lays a model out: links into a folder of blobs."""
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    small_model(snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(p for p in snapshot.iterdir() if p.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    return snapshot


@WAYS
def test_a_hub_cache_by_its_shape(tmp_path: Path, here: Path, low: bool) -> None:
    model = _snapshot(tmp_path / "anywhere" / "models--org--name")
    result = _refused(model, low=low, said="hub cache")
    assert result == here / "org--name-patched"


@WAYS
def test_the_hub_cache_that_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path, low: bool
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    model = small_model(cache / "by-hand" / "model")
    assert _refused(model, low=low, said="hub cache").parent == here
    elsewhere = small_model(tmp_path / "elsewhere" / "model")
    (tmp_path / "link").symlink_to(cache)
    for out in (cache / "result", cache / "by-hand" / "result", tmp_path / "link" / "result"):
        assert _refused(elsewhere, out=out, said="hub cache").parent == elsewhere.parent
        assert not out.exists()


@WAYS
def test_a_name_that_is_a_link(tmp_path: Path, low: bool) -> None:
    small_model(tmp_path / "real" / "model")
    (tmp_path / "link").symlink_to("real/model")
    _refused(tmp_path / "link", low=low, said="symbolic link")
    change(tmp_path / "real" / "model", EDIT)
    with pytest.raises(UnsafeInPlace, match="symbolic link"):
        revert(tmp_path / "link", by="tester", low_space=low)


@WAYS
@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json", "sub/notes.txt"])
def test_a_file_that_is_a_link(tmp_path: Path, low: bool, name: str) -> None:
    model = small_model(tmp_path / "parent" / "model")
    (model / name).rename(tmp_path / "kept")
    (model / name).symlink_to(tmp_path / "kept")
    _refused(model, low=low, said=f"{name} is a symbolic link")


@WAYS
@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer.json", "sub/notes.txt"])
def test_a_file_with_two_names(tmp_path: Path, low: bool, name: str) -> None:
    """Whether the other name is one of ours, left by a process that was killed, is only known under the lock."""
    model = small_model(tmp_path / "parent" / "model")
    (tmp_path / "other").hardlink_to(model / name)
    plan, before = approved_plan(model, EDIT), untouched(model)
    with pytest.raises(UnsafeInPlace, match=f"{name} has 2 names") as caught:
        apply_plan(plan, model, out=None, policy=Policy(), by="tester", low_space=low)
    assert untouched(model) == before
    assert os.listdir(model.parent) == ["model"]
    change(model, EDIT, out=_out_of(caught.value))
    assert untouched(model) == before
    (tmp_path / "other").unlink()
    change(model, EDIT)
    (tmp_path / "other").hardlink_to(model / name)
    before = untouched(model)
    with pytest.raises(UnsafeInPlace, match=f"{name} has 2 names"):
        revert(model, by="tester", low_space=low)
    assert untouched(model) == before


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which never ends


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        short = os.path.relpath(path)  # such a name has no more than 107 bytes
        listening.bind(short if len(short) < 100 else str(path))


@pytest.mark.parametrize("make", [_fifo, _socket, pytest.param(_device, marks=AS_ROOT)])
@pytest.mark.parametrize("out", [False, True], ids=["in-place", "out"])
def test_what_is_no_file_is_named_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], out: bool
) -> None:
    model = small_model(tmp_path / "parent" / "model")
    plan = approved_plan(model, EDIT)
    monkeypatch.chdir(model)
    make(model / "odd")
    before = untouched(model.parent)
    with pytest.raises(StorageError, match="odd is not a regular file") as caught:
        apply_plan(plan, model, out=tmp_path / "out" if out else None, policy=Policy(), by="tester")
    assert caught.value.hint == "remove it from the checkpoint folder"
    after = untouched(model.parent)
    if out:  # found once the stage is begun, which is beside the result
        assert not any(path.name.startswith((".out", "out")) for path in tmp_path.iterdir())
    assert after == before
    (model / "odd").unlink()
    change(model, EDIT)


@AS_ROOT
@WAYS
def test_a_mount_that_may_only_be_read(tmp_path: Path, here: Path, low: bool) -> None:
    real = small_model(tmp_path / "real" / "model").parent
    with mounted(tmp_path / "mounted", "-o", "ro,bind", str(real)) as place:
        if os.access(place, os.W_OK):
            pytest.skip("a bind mount is not made read-only here")
        result = _refused(place / "model", low=low, kind=ReadOnly, said="may not be written")
        assert result == here / "model-patched"
        _refused(place / "model", out=place / "result", kind=ReadOnly, said="may not be written")


@AS_ROOT
@WAYS
def test_a_folder_that_is_a_mount(tmp_path: Path, low: bool) -> None:
    with tmpfs(tmp_path / "model", 4 * 2**20) as model:
        small_model(tmp_path / "kept")
        for path in (tmp_path / "kept").iterdir():
            shutil.move(path, model)
        _refused(model, low=low, said="mounted")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can get at, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@AS_ROOT
@WAYS
@pytest.mark.parametrize("closed", ["the folder", "a folder in it", "its parent"])
def test_folders_that_a_user_may_not_write(open_folder: Path, low: bool, closed: str) -> None:
    model = small_model(open_folder / "parent" / "model")
    for path in (open_folder, *open_folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    own = open_folder / "own"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    shut = {"the folder": model, "a folder in it": model / "sub", "its parent": model.parent}[closed]
    os.chown(shut, 0, 0)
    shut.chmod(0o755)

    def work() -> None:
        os.environ["PLANNER_CACHE"] = str(own / "cache")
        os.environ["PLANNER_STATE"] = str(own / "state")
        os.chdir(own)
        approved_plan(model, EDIT)
        result = _refused(model, low=low, kind=ReadOnly, said=f"{shut} may not be written")
        assert result.parent == (own if closed == "its parent" else model.parent)

    assert as_nobody(work) == 0


def test_a_file_system_that_cannot_exchange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(tmp_path / "parent" / "model")
    plan = approved_plan(model, EDIT)

    def exchange(first: Path, second: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(calls, "exchange", exchange)
    before = untouched(model)
    with pytest.raises(UnsafeInPlace, match="cannot swap") as caught:
        apply_plan(plan, model, out=None, policy=Policy(), by="tester")
    assert "--out" in str(caught.value.hint)
    assert untouched(model) == before
    assert os.listdir(model.parent) == ["model"]
    receipt: Receipt = change(model, EDIT, low_space=True)  # needs no exchange
    assert verify(Path(receipt.path)).sound
    with pytest.raises(UnsafeInPlace, match="cannot swap"):
        revert(model, by="tester")
    revert(model, by="tester", low_space=True)
    assert verify(model).original
