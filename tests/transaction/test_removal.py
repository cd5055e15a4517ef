"""What could not be removed after the switch of names is refused before it: flags, sticky folders, others' ledgers."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hints import commands_in, copied_as_said
from small_disks import AS_ROOT, NOBODY, as_nobody
from snapshots import approved_plan, attributes, change, files, scale, small_model, untouched

from planner import fsio
from planner.errors import ReadOnly, StorageError, UnsafeInPlace
from planner.fsio import flags
from planner.plan import Policy
from planner.transaction import apply_plan, revert, verify
from planner.transaction.places import refuse_in_place, refuse_linked, refuse_special_modes

EDIT = scale(1.5, layers="0-1")
WAYS = pytest.mark.parametrize("low", [False, True], ids=["two copies", "low space"])


@pytest.fixture
def fix(tmp_path: Path) -> Iterator[Callable[[str, Path], None]]:
    """Sets a flag; skips the test where that cannot be done."""

    def fixed(flag: str, path: Path) -> None:
        try:
            run = subprocess.run(["chattr", f"+{flag}", str(path)], capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no chattr here")
        if run.returncode:
            pytest.skip(f"no flags may be set here: {run.stderr.decode().strip()}")

    yield fixed
    subprocess.run(["chattr", "-R", "-i", "-a", str(tmp_path)], capture_output=True, check=False)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can get at, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def _given_to_nobody(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)


def _at_home(folder: Path) -> Path:
    """A folder of the user without rights, to be in and to keep things in."""
    own = folder / "own"
    own.mkdir(exist_ok=True)
    os.environ["PLANNER_CACHE"] = str(own / "cache")
    os.environ["PLANNER_STATE"] = str(own / "state")
    os.chdir(own)
    return own


@AS_ROOT
@pytest.mark.parametrize(
    ("flag", "name", "low"),
    [
        ("i", "tokenizer.json", False),
        ("a", "tokenizer.json", True),
        ("i", "model-00001-of-00002.safetensors", True),
        ("a", "model-00001-of-00002.safetensors", False),
        ("i", "sub", False),
        ("a", "sub", True),
        ("i", "", False),
        ("a", "", True),
        ("i", "..", True),
        ("a", "..", False),
        ("i", ".planner/ledger.json", False),
        ("a", ".planner", False),
    ],
)
def test_what_is_fixed_is_refused(
    tmp_path: Path, fix: Callable[[str, Path], None], monkeypatch: pytest.MonkeyPatch, flag: str, name: str, low: bool
) -> None:
    model, here = small_model(tmp_path / "parent" / "model"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    old = files(model)
    change(model, EDIT)
    plan = approved_plan(model, scale(0.5, layers="0"))
    target = model / name if name != ".." else model.parent
    fix(flag, target)
    before = untouched(model.parent)
    with pytest.raises((UnsafeInPlace, ReadOnly)) as caught:
        apply_plan(plan, model, out=None, policy=Policy(), by="tester", low_space=low)
    assert str(target) in caught.value.message
    with pytest.raises((UnsafeInPlace, ReadOnly)):
        revert(model, by="tester", low_space=low)
    with pytest.raises((UnsafeInPlace, ReadOnly)) as reverting:
        refuse_in_place(model, reverting=True)
    assert untouched(model.parent) == before
    out = Path(caught.value.hint.rpartition("--out ")[2])
    apply_plan(plan, model, out=out, policy=Policy(), by="tester")
    copy = copied_as_said(reverting.value)
    revert(copy, by="tester", low_space=low)
    assert files(copy) == old
    if not isinstance(caught.value, ReadOnly):
        allow = commands_in(caught.value)[0]
        assert allow == f"sudo chattr -i -a {target}"
        subprocess.run(["bash", "-c", allow.removeprefix("sudo ")], check=True)
        revert(model, by="tester", low_space=low)
        assert files(model) == old


@pytest.mark.parametrize("machine", ["ordinary", "another"])
def test_the_flags_are_asked_for_with_the_number_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    asked = []

    def ioctl(descriptor: int, request: int, room: bytes) -> bytes:
        asked.append(request)
        if machine == "another":
            raise OSError(25, "Inappropriate ioctl for device")
        return b"\x20\0\0\0\0\0\0\0"

    monkeypatch.setattr(flags.fcntl, "ioctl", ioctl)
    assert fsio.fixed(tmp_path) == ("append-only" if machine == "ordinary" else "")
    if os.uname().machine in ("x86_64", "aarch64"):
        assert asked == [0x80086601]


def test_what_is_no_file_is_not_opened_for_its_flags(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    assert [fsio.fixed(tmp_path / name) for name in ("pipe", "link", "missing")] == ["", "", ""]


@pytest.mark.parametrize("when", ["model", "config.json", "notes.txt"])
def test_what_a_writer_moves_away_in_the_meantime_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    model, aside = small_model(tmp_path / "model"), tmp_path / "aside"

    def moved(path: Path) -> str:
        if path.name == when and not aside.exists():
            model.rename(aside)
        return ""

    monkeypatch.setattr(fsio, "fixed", moved)
    refuse_in_place(model, locked=False)
    assert aside.exists()
    aside.rename(model)
    with pytest.raises(StorageError, match="No such file"):
        refuse_in_place(model)


@AS_ROOT
@WAYS
@pytest.mark.parametrize("where", ["the parent", "the folder", "a folder in it"])
def test_a_sticky_folder_with_files_of_others(open_folder: Path, where: str, low: bool) -> None:
    model = small_model(open_folder / "parent" / "model")
    _given_to_nobody(open_folder)
    sticky, others = {
        "the parent": (model.parent, model),
        "the folder": (model, model / "config.json"),
        "a folder in it": (model / "sub", model / "sub" / "notes.txt"),
    }[where]
    os.chown(sticky, 0, 0)
    sticky.chmod(0o1777)
    os.chown(others, 0, 0)
    others.chmod(0o777)

    def work() -> None:
        _at_home(open_folder)
        plan = approved_plan(model, EDIT)
        before = untouched(model.parent)
        with pytest.raises(UnsafeInPlace, match=re.escape(f"{others} is somebody else's")) as caught:
            apply_plan(plan, model, out=None, policy=Policy(), by="tester", low_space=low)
        with pytest.raises(UnsafeInPlace, match="sticky"):
            revert(model, by="tester", low_space=low)
        assert untouched(model.parent) == before
        out = Path(caught.value.hint.rpartition("--out ")[2])
        apply_plan(plan, model, out=out, policy=Policy(), by="tester")
        assert verify(out).sound
        with pytest.raises(UnsafeInPlace) as reverting:
            refuse_in_place(model, reverting=True)
        refuse_in_place(copied_as_said(reverting.value))

    assert as_nobody(work) == 0
    change(model, EDIT, low_space=low)  # root may remove everything


@AS_ROOT
@WAYS
def test_a_sticky_folder_with_files_of_ones_own(open_folder: Path, low: bool) -> None:
    model = small_model(open_folder / "parent" / "model")
    _given_to_nobody(open_folder)
    os.chown(model.parent, 0, 0)
    for path in (model.parent, model, model / "sub"):
        path.chmod(0o1777)

    def work() -> None:
        _at_home(open_folder)
        old = attributes(model)
        change(model, EDIT, low_space=low)
        revert(model, by="tester", low_space=low)
        assert attributes(model) == old

    assert as_nobody(work) == 0


@AS_ROOT
@WAYS
def test_a_ledger_that_another_user_made(open_folder: Path, low: bool) -> None:
    """As when root, or sudo, applied the first patch."""
    model = small_model(open_folder / "parent" / "model")
    change(model, EDIT)
    _given_to_nobody(open_folder)
    ledger = model / ".planner"
    for path in (ledger, *ledger.rglob("*")):
        os.chown(path, 0, 0)

    def refused() -> None:
        _at_home(open_folder)
        plan = approved_plan(model, scale(0.5, layers="0"))
        before = untouched(model.parent)
        for reverting in (False, True):
            with pytest.raises(ReadOnly, match="somebody else's") as caught:
                refuse_in_place(model, reverting=reverting)
            assert commands_in(caught.value) == [f"sudo chown -R nobody {ledger}"]
        with pytest.raises(ReadOnly):
            apply_plan(plan, model, out=None, policy=Policy(), by="tester", low_space=low)
        with pytest.raises(ReadOnly):
            revert(model, by="tester", low_space=low)
        assert untouched(model.parent) == before

    assert as_nobody(refused) == 0
    subprocess.run(["chown", "-R", "nobody", str(ledger)], check=True)

    def allowed() -> None:
        _at_home(open_folder)
        change(model, scale(0.5, layers="0"), low_space=low)
        revert(model, to=0, by="tester", low_space=low)
        assert verify(model).original

    assert as_nobody(allowed) == 0


@AS_ROOT
@pytest.mark.parametrize(("name", "mode"), [("patches", 0o555), ("ledger.json", 0o200), ("", 0o300)])
def test_a_ledger_that_is_closed_to_its_owner(open_folder: Path, name: str, mode: int) -> None:
    model = small_model(open_folder / "parent" / "model")
    change(model, EDIT)
    _given_to_nobody(open_folder)
    (model / ".planner" / name).chmod(mode)

    def work() -> None:
        _at_home(open_folder)
        with pytest.raises(ReadOnly, match="closed to its owner") as caught:
            refuse_in_place(model)
        subprocess.run(["bash", "-c", commands_in(caught.value)[0]], check=True)
        revert(model, by="tester")

    assert as_nobody(work) == 0


@AS_ROOT
@pytest.mark.parametrize("mode", [0o2755, 0o4755, 0o6750])
def test_special_modes_of_shards(open_folder: Path, mode: int) -> None:
    model = small_model(open_folder / "parent" / "model")
    _given_to_nobody(open_folder)
    shards = sorted(model.glob("*.safetensors"))
    for shard in shards:
        shard.chmod(mode)
    old = attributes(model)

    def work() -> None:
        _at_home(open_folder)
        with pytest.raises(UnsafeInPlace, match="setuid or setgid") as caught:
            refuse_special_modes(model)
        assert caught.value.hint == "leave --low-space out"
        change(model, EDIT)
        assert {stat.S_IMODE(shard.stat().st_mode) for shard in shards} == {mode}
        revert(model, by="tester")
        assert attributes(model) == old

    assert as_nobody(work) == 0
    for low in (False, True):
        refuse_special_modes(model)  # root keeps the bits
        change(model, EDIT, low_space=low)
        assert {stat.S_IMODE(shard.stat().st_mode) for shard in shards} == {mode}
        revert(model, by="tester", low_space=low)
        assert attributes(model) == old


@AS_ROOT
def test_ordinary_modes_are_nothing_special(open_folder: Path) -> None:
    model = small_model(open_folder / "model")
    (model / "sub" / "notes.txt").chmod(0o2755)  # is not written into
    (model / "sub").chmod(0o2755)
    _given_to_nobody(open_folder)
    assert as_nobody(lambda: refuse_special_modes(model)) == 0


@WAYS
@pytest.mark.parametrize("problem", ["a linked file", "a file with two names", "a linked folder", "a hub cache"])
def test_a_patch_is_taken_back_in_a_copy_where_the_place_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str, low: bool
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = small_model(tmp_path / "it's a parent" / "model")
    old = files(model)
    change(model, EDIT, low_space=low)
    given = model
    if problem == "a linked file":
        (model / "tokenizer.json").rename(tmp_path / "kept")
        (model / "tokenizer.json").symlink_to(tmp_path / "kept")
    elif problem == "a file with two names":
        (model / "twin").hardlink_to(model / "tokenizer.json")
    elif problem == "a linked folder":
        given = tmp_path / "link"
        given.symlink_to(model)
    else:
        monkeypatch.setenv("HF_HUB_CACHE", str(model.parent))
    with pytest.raises(StorageError) as caught:
        revert(given, by="tester", low_space=low)
    refuse = refuse_linked if problem == "a file with two names" else refuse_in_place
    with pytest.raises(type(caught.value)) as caught:
        refuse(given, reverting=True)
    assert "--out" not in caught.value.hint
    copy = copied_as_said(caught.value)
    revert(copy, by="tester", low_space=low)
    found = files(copy)
    found.pop("twin", None)
    assert found == old


@AS_ROOT
def test_a_patch_is_taken_back_in_a_copy_where_a_folder_may_not_be_written(open_folder: Path) -> None:
    model = small_model(open_folder / "parent" / "model")
    old = files(model)
    change(model, EDIT)
    (model / "sub").chmod(0o555)
    model.chmod(0o555)
    _given_to_nobody(open_folder)

    def work() -> None:
        _at_home(open_folder)
        with pytest.raises(ReadOnly, match="may not be written") as caught:
            refuse_in_place(model, reverting=True)
        copy = copied_as_said(caught.value)
        revert(copy, by="tester")
        assert files(copy) == old

    assert as_nobody(work) == 0
