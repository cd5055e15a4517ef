"""A mount in a checkpoint, or a checkpoint that is mounted somewhere: nothing in place, and nobody's files removed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hints import commands_in, copied_as_said
from small_disks import AS_ROOT
from snapshots import approved_plan, change, files, scale, small_model, untouched

from planner import fsio
from planner.errors import StorageError, UnsafeInPlace
from planner.plan import Policy
from planner.transaction import apply_plan, recover, revert, verify
from planner.transaction.places import refuse_in_place, refuse_output

pytestmark = AS_ROOT
EDIT = scale(1.5, layers="0-1")
WAYS = pytest.mark.parametrize("low", [False, True], ids=["two copies", "low space"])
KINDS = pytest.mark.parametrize("kind", ["folder", "tmpfs", "file", "ledger"])
Mounting = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounting]:
    """Mounts something; skips the test where that is not allowed."""

    def made(place: Path, *options: str) -> Path:
        run = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
        if run.returncode:
            pytest.skip(f"mounting is not allowed here: {run.stderr.decode().strip()}")
        return place

    yield made
    for place in fsio.mounted_in(tmp_path):  # wherever it is now: what is tested here moves folders
        subprocess.run(["umount", str(place)], check=True)


def _theirs(folder: Path) -> Path:
    (folder / "theirs" / "deep").mkdir(parents=True)
    (folder / "theirs" / "deep" / "data").write_text("precious")
    (folder / "theirs" / "data").write_text("precious")
    return folder / "theirs"


def _mounted_in(model: Path, mount: Mounting, kind: str) -> Path:
    theirs = _theirs(model.parent.parent)
    if kind == "file":
        return mount(model / "tokenizer.json", "--bind", str(theirs / "data"))
    place = model / (".planner/kept" if kind == "ledger" else "empty")
    place.mkdir(parents=True, exist_ok=True)
    if kind == "tmpfs":
        mount(place, "-t", "tmpfs", "none")
        (place / "data").write_text("precious")
        return place
    return mount(place, "--bind", str(theirs))


@WAYS
@KINDS
def test_apply_is_refused_where_something_is_mounted(tmp_path: Path, mount: Mounting, kind: str, low: bool) -> None:
    model = small_model(tmp_path / "parent" / "model")
    plan = approved_plan(model, EDIT)
    place = _mounted_in(model, mount, kind)
    before = untouched(tmp_path)
    with pytest.raises(UnsafeInPlace, match="mounted on") as caught:
        apply_plan(plan, model, out=None, policy=Policy(), by="tester", low_space=low)
    assert untouched(tmp_path) == before
    unmount, out = commands_in(caught.value)[0], Path(caught.value.hint.rpartition("--out ")[2])
    apply_plan(plan, model, out=out, policy=Policy(), by="tester")
    assert verify(out).sound
    assert unmount == f"umount {place}"
    subprocess.run(["bash", "-c", unmount], check=True)
    (model / ".planner" / "kept").rmdir() if kind == "ledger" else None
    (model / ".planner").rmdir() if kind == "ledger" else None
    change(model, EDIT, low_space=low)


@WAYS
@KINDS
def test_revert_is_refused_where_something_is_mounted(tmp_path: Path, mount: Mounting, kind: str, low: bool) -> None:
    model = small_model(tmp_path / "parent" / "model")
    old = files(model)
    change(model, EDIT)
    place = _mounted_in(model, mount, kind)
    before = untouched(tmp_path)
    with pytest.raises(UnsafeInPlace, match="mounted on"):
        revert(model, by="tester", low_space=low)
    with pytest.raises(UnsafeInPlace, match="mounted on") as caught:
        refuse_in_place(model, reverting=True)
    assert untouched(tmp_path) == before
    copy = copied_as_said(caught.value)
    revert(copy, by="tester", low_space=low)
    shards = [name for name in old if name.endswith(".safetensors")]
    assert {name: files(copy)[name] for name in shards} == {name: old[name] for name in shards}
    unmount = commands_in(caught.value)[0]
    assert unmount == f"umount {place}"
    subprocess.run(["bash", "-c", unmount], check=True)
    revert(model, by="tester", low_space=low)
    assert files(model) == old


@WAYS
@pytest.mark.parametrize("part", ["", "sub", "model-00001-of-00002.safetensors"])
def test_a_checkpoint_that_is_seen_elsewhere_as_well(tmp_path: Path, mount: Mounting, part: str, low: bool) -> None:
    model = small_model(tmp_path / "parent" / "model")
    plan, view = approved_plan(model, EDIT), tmp_path / "view"
    view.touch() if part.endswith("s") else view.mkdir()
    mount(view, "--bind", str(model / part))
    before = untouched(tmp_path)
    with pytest.raises(UnsafeInPlace, match=r"is mounted on .*view as well") as caught:
        apply_plan(plan, model, out=None, policy=Policy(), by="tester", low_space=low)
    assert untouched(tmp_path) == before
    assert commands_in(caught.value) == [f"umount {view}"]
    subprocess.run(["bash", "-c", commands_in(caught.value)[0]], check=True)
    change(model, EDIT, low_space=low)


@WAYS
def test_a_checkpoint_that_is_a_bind_mount(tmp_path: Path, mount: Mounting, low: bool) -> None:
    """Of the same file system, which no device number shows."""
    model, view = small_model(tmp_path / "parent" / "model"), tmp_path / "view"
    view.mkdir()
    mount(view, "--bind", str(model))
    before = untouched(tmp_path)
    with pytest.raises(UnsafeInPlace, match="name cannot be exchanged"):
        apply_plan(approved_plan(view, EDIT), view, out=None, policy=Policy(), by="tester", low_space=low)
    assert untouched(tmp_path) == before


def test_what_a_killed_process_left_is_not_removed_through_a_mount(tmp_path: Path, mount: Mounting) -> None:
    model, theirs = small_model(tmp_path / "parent" / "model"), _theirs(tmp_path)
    leftover = model.parent / ".model.planner-stage-0123abcd"
    (leftover / "sub").mkdir(parents=True)
    (leftover / "file").touch()
    mount(leftover / "sub", "--bind", str(theirs))
    before = untouched(model, leftover, theirs)
    with pytest.raises(StorageError, match="is mounted on") as caught:
        recover(model)
    assert untouched(model, leftover, theirs) == before
    subprocess.run(["bash", "-c", commands_in(caught.value)[0]], check=True)
    recover(model)
    assert not leftover.exists()
    assert (theirs / "deep" / "data").read_text() == "precious"


def test_a_result_cannot_take_the_place_of_a_mount(tmp_path: Path, mount: Mounting) -> None:
    model, out = small_model(tmp_path / "parent" / "model"), tmp_path / "out"
    out.mkdir()
    mount(out, "--bind", str(out))
    with pytest.raises(UnsafeInPlace, match="mounted on") as caught:
        refuse_output(out, model)
    change(model, EDIT, out=Path(caught.value.hint.rpartition("--out ")[2]))
    assert fsio.mounted_in(out) == [out]


def test_a_mount_beside_the_checkpoint_is_in_nobodys_way(tmp_path: Path, mount: Mounting) -> None:
    model, theirs = small_model(tmp_path / "parent" / "model"), _theirs(tmp_path)
    (model.parent / "model-2").mkdir()
    mount(model.parent / "model-2", "--bind", str(theirs))
    change(model, EDIT)
    revert(model, by="tester")
    assert (theirs / "deep" / "data").read_text() == "precious"
