"""What the lock does not keep out: other programs at work in the folder, folders that were moved, records of others."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from faults import Disk, installed, run_forked
from small_disks import AS_ROOT
from snapshots import approved_plan, change, everything, files, litter, scale, small_model

from planner.checkpoint import digest_bytes
from planner.errors import FileInUse, LedgerDamaged, PlannerError, RecoveryBlocked, UnsafeInPlace
from planner.fsio import calls
from planner.plan import Policy
from planner.transaction import apply_plan, recover, revert, verify
from planner.transaction.in_place.journal import Journal

EDIT = scale(1.5, layers="0-1")
LOW = pytest.mark.parametrize("low", [False, True], ids=["two copies", "low space"])
VERBS = pytest.mark.parametrize("verb", ["apply", "revert"])


def _new_file(model: Path) -> None:
    (model / "notes.txt").write_text("what a trainer wrote")


def _new_folder(model: Path) -> None:
    (model / "logs").mkdir()


def _edited(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"edited": "by its owner"}')


def _removed(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def _saved(model: Path) -> None:
    """A shard with other weights, put in the place of the old one, as training programs do."""
    shard = min(model.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    (model / "temporary").write_bytes(content)
    (model / "temporary").replace(shard)


@LOW
@VERBS
@pytest.mark.parametrize("do", [_new_file, _new_folder, _edited, _removed, _saved])
def test_what_another_program_writes_in_the_meantime_is_not_thrown_away(
    tmp_path: Path, do: Callable[[Path], None], verb: str, low: bool
) -> None:
    model = small_model(tmp_path / "model")
    (model / "tokenizer.json").write_text("{}")
    if verb == "revert":
        change(model, EDIT, low_space=low)
    plan, done = approved_plan(model, EDIT), list[Path]()

    def progress(step: str, now: int, total: int | None) -> None:
        if step == ("verifying" if verb == "revert" and not low else "writing") and not done:
            done.append(model)
            do(model)

    acts: dict[str, Callable[[], object]] = {
        "apply": lambda: apply_plan(plan, model, out=None, policy=Policy(), by="t", low_space=low, progress=progress),
        "revert": lambda: revert(model, by="t", low_space=low, progress=progress),
    }
    # Some are noticed earlier than others, and then the reason is another one.
    late = do in (_new_file, _new_folder)
    with pytest.raises(FileInUse if late else PlannerError, match="another program has changed" if late else None):
        acts[verb]()
    assert done
    beside = small_model(tmp_path / "beside" / "model")
    (beside / "tokenizer.json").write_text("{}")
    if verb == "revert":
        change(beside, EDIT, low_space=low)
    do(beside)
    assert files(model) == files(beside)
    assert (model / "logs").exists() is (do is _new_folder)
    assert litter(tmp_path) == []


@LOW
def test_what_is_written_at_the_very_moment_of_the_commit_is_put_back(tmp_path: Path, low: bool) -> None:
    model = small_model(tmp_path / "model")
    old = files(model)

    def write(call: str) -> None:
        place = model if model.exists() else tmp_path / ".model.planner-aside"
        (place / "notes.txt").write_text("at the last moment")

    with installed(Disk()) as disk:
        change(small_model(tmp_path / "beside" / "model"), EDIT, low_space=low)
    # The switch itself; in low space the last write into its place, after which everything is read back.
    last = max(n for n, call in enumerate(disk.calls, 1) if call == ("pwrite" if low else "exchange"))
    with installed(Disk(last, write)), pytest.raises(FileInUse, match=r"notes\.txt"):
        change(model, EDIT, low_space=low)
    assert (model / "notes.txt").read_text() == "at the last moment"
    (model / "notes.txt").unlink()
    assert files(model) == old
    assert litter(tmp_path) == []


@VERBS
def test_a_change_in_place_that_was_committed_and_then_moved_is_tidied_up(tmp_path: Path, verb: str) -> None:
    model = small_model(tmp_path / "model")
    if verb == "revert":
        change(model, EDIT, low_space=True)

    def killed_after_the_commit() -> None:
        rename = calls.rename

        def renamed(source: Path, target: Path) -> None:
            rename(source, target)
            if ".planner-stage-" in Path(source).name:
                os.kill(os.getpid(), signal.SIGKILL)

        calls.rename = renamed
        if verb == "apply":
            change(model, EDIT, low_space=True)
        else:
            revert(model, by="t", low_space=True)

    assert run_forked(killed_after_the_commit) == -signal.SIGKILL
    moved = model.rename(tmp_path / "moved")
    new = files(moved)
    recover(model)
    assert litter(tmp_path) == []
    assert not model.exists()
    assert files(moved) == new
    assert verify(moved).sound
    if verb == "apply":
        revert(moved, by="t", low_space=True)
        assert files(moved) == files(small_model(tmp_path / "again" / "model"))


def test_a_model_that_was_moved_away_from_a_stage_says_how_to_get_rid_of_it(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model", shards=2)
    old = files(model)

    def killed_before_the_commit() -> None:
        calls.exchange = lambda first, second: os.kill(os.getpid(), signal.SIGKILL) if Path(second) == model else None
        change(model, scale(1.5, layers="0"))

    assert run_forked(killed_before_the_commit) == -signal.SIGKILL
    moved = model.rename(tmp_path / "moved")
    if max(path.stat().st_nlink for path in moved.rglob("*.safetensors")) == 1:
        pytest.skip("this file system shares bytes without a second name")
    with pytest.raises(UnsafeInPlace, match="hard links") as caught:
        change(moved, EDIT)
    (command,) = re.findall("`planner recover (.*)`", caught.value.hint)
    recover(Path(command))
    assert litter(tmp_path) == []
    assert files(moved) == old
    change(moved, EDIT)


def _killed_half_way(model: Path) -> None:
    def killed() -> None:
        place, written = calls.pwrite, list[int]()

        def half(descriptor: int, data: bytes, offset: int) -> int:
            written.append(offset)
            if len(written) == 3:  # the slot, the place, and no further
                os.kill(os.getpid(), signal.SIGKILL)
            return place(descriptor, data, offset)

        calls.pwrite = half
        change(model, EDIT, low_space=True)

    assert run_forked(killed) == -signal.SIGKILL
    assert not model.exists()


def test_without_its_stage_a_half_changed_model_is_kept(tmp_path: Path) -> None:
    """Whoever tidies up by hand and takes the stage with it can put it back."""
    model = small_model(tmp_path / "model")
    old = files(model)
    _killed_half_way(model)
    (stage,) = tmp_path.glob(".model.planner-stage-*")
    stage.rename(tmp_path / "trash")
    (tmp_path / ".model.planner-lock").unlink()  # of the one that was killed
    before = everything(tmp_path)
    with pytest.raises(RecoveryBlocked, match="is gone") as caught:
        recover(model)
    assert everything(tmp_path) == before
    assert stage.name in caught.value.hint
    (tmp_path / "trash").rename(stage)
    recover(model)
    assert files(model) == old
    assert litter(tmp_path) == []


STAGE = ".model.planner-stage-0123abcd"


@pytest.mark.parametrize("way", ["apply", "revert"])
@pytest.mark.parametrize("name", ["../home/Documents", "/HOME", "Documents", "", ".", "a link", "another folder"])
def test_a_journal_of_strangers_moves_no_other_folder(
    tmp_path: Path, name: str, way: Literal["apply", "revert"]
) -> None:
    """Hidden folders come along in archives, too."""
    home, place = tmp_path / "home" / "Documents", tmp_path / "place"
    home.mkdir(parents=True)
    (home / "thesis").write_text("years")
    small_model(place / ".model.planner-aside")
    (place / "Documents").mkdir()
    if name == "a link":
        (place / STAGE).symlink_to(home)
    elif name == "another folder":  # under a name that a stage could have
        (place / STAGE).mkdir()
        (place / STAGE / "thesis").write_text("years")
        way = "revert"  # of an apply, the folder aside gets its name back, and this one is what an apply had left
    stage = {"/HOME": str(home), "a link": STAGE, "another folder": STAGE}.get(name, name)
    journal = Journal(way=way, stage=stage, patches=(), ledger="x", tensors=(), pieces=digest_bytes(b""))
    folder = place / ".model.planner-journal"
    folder.mkdir()
    (folder / "journal.json").write_text(journal.model_dump_json())
    for empty in ("pieces", "slot"):
        (folder / empty).write_bytes(b"")
    before = everything(tmp_path)
    with pytest.raises(LedgerDamaged):
        recover(place / "model")
    assert everything(tmp_path) == before


def test_a_folder_whose_name_only_begins_as_that_of_a_stage_is_left_alone(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    mine = small_model(tmp_path / ".model.planner-stage-mine")
    before = files(mine)
    assert recover(model) == ()
    change(model, EDIT)
    assert files(mine) == before


@pytest.mark.parametrize("given", ["model/sub/..", "model/../model", "model/."])
def test_a_model_may_be_named_in_a_roundabout_way(tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(tmp_path / "model")
    (model / "sub").mkdir(exist_ok=True)
    folders = sorted(path.name for path in model.iterdir() if path.is_dir())
    old = files(model)
    monkeypatch.chdir(tmp_path)
    change(Path(given), EDIT)
    assert files(model) != old
    revert(Path(given), by="t")
    recover(Path(given))
    assert files(model) == old
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in model.iterdir() if path.is_dir()) == [".planner", *folders]


def test_the_current_folder_can_be_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(tmp_path / "model")
    monkeypatch.chdir(model)
    change(Path(), EDIT, out=tmp_path / "out")
    assert verify(tmp_path / "out").sound


@AS_ROOT
def test_the_records_belong_to_whom_the_model_belongs(tmp_path: Path) -> None:
    """What root patched, its owner can take back."""
    model = small_model(tmp_path / "model")
    for path in (model, *model.rglob("*")):
        os.chown(path, 65534, 65534)
    change(model, EDIT)
    owners = {path: path.stat().st_uid for path in model.rglob("*") if path.is_dir()}
    assert owners
    assert set(owners.values()) == {65534}
