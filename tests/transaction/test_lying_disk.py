"""A disk that takes bytes and gives back others: noticed before the commit, or by verify and revert afterwards."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snapshots import approved_plan, change, everything, files, litter, scale, small_model

from planner.errors import LedgerDamaged, StalePlan, StorageError
from planner.fsio import calls
from planner.plan import Policy
from planner.transaction import apply_plan, patch_folder, read_ledger, revert, verify

EDIT = scale(1.5, layers="0-1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x01
    path.write_bytes(content)


def _altered_writes(monkeypatch: pytest.MonkeyPatch, at: int, place: int) -> list[Path]:
    """The `at`-th write (from 1) of more than a process number stores one wrong bit; returns the files written to."""
    written: list[Path] = []
    real = calls.write

    def write(descriptor: int, data: Any) -> int:
        name = Path(os.readlink(f"/dev/fd/{descriptor}"))
        if not name.name.endswith("-lock"):
            written.append(name)
            if len(written) == at:
                changed = bytearray(data)
                changed[min(place, len(changed) - 1)] ^= 0x01
                data = bytes(changed)
        return real(descriptor, data)

    monkeypatch.setattr(calls, "write", write)
    return written


def _no_second_names(*_: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def _apply_out(model: Path) -> Callable[[], object]:
    plan = approved_plan(model, EDIT)
    return lambda: apply_plan(plan, model, out=model.parent / "out", policy=Policy(), by="tester")


def _apply_in_place(model: Path) -> Callable[[], object]:
    change(model, scale(2, layers="2"))
    plan = approved_plan(model, EDIT)
    return lambda: apply_plan(plan, model, out=None, policy=Policy(), by="tester")


def _revert(model: Path) -> Callable[[], object]:
    change(model, EDIT)
    change(model, scale(0.8, layers="1"))
    return lambda: revert(model, by="tester")


@pytest.mark.parametrize("prepare", [_apply_out, _apply_in_place, _revert])
@pytest.mark.parametrize("place", [0, 9, 35, -1], ids=["first byte", "tenth byte", "metadata", "last byte"])
def test_one_wrong_bit_in_anything_that_is_written_stops_the_transaction(
    model: Path, prepare: Callable[[Path], Callable[[], object]], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every write in turn: weights, header, other files, undo data, plan, receipt, ledger."""
    work = prepare(model)
    monkeypatch.setattr(calls, "link", _no_second_names)  # so everything is copied, and everything is written
    before = everything(model.parent)
    number = 0
    while True:
        number += 1
        with monkeypatch.context() as patch:
            written = _altered_writes(patch, number, place)
            try:
                work()
            except StorageError as error:
                caught: StorageError | None = error
            else:
                caught = None
        if caught is None:
            break
        assert everything(model.parent) == before, f"{written[-1]} was altered, and something changed"
        assert caught.exit_status == 7
    assert len(written) == number - 1, f"a wrong bit in {written[number - 1]} went unnoticed"
    kinds = {path.name for path in written}
    assert {"ledger.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} & kinds
    if prepare is not _revert:
        assert {"undo.safetensors", "plan.json", "receipt.json", "ledger.json"} <= kinds
    assert litter(model.parent) == []


@pytest.mark.parametrize("place", [3, 20, -1], ids=["length", "header", "data"])
def test_altered_undo_data_are_noticed_and_nothing_is_changed(model: Path, place: int) -> None:
    change(model, EDIT)
    _flip(patch_folder(model, 1) / "undo.safetensors", place)
    before = everything(model.parent)
    with pytest.raises(StorageError) as caught:
        revert(model, by="tester")
    assert caught.value.exit_status == 7
    assert everything(model.parent) == before
    found = verify(model)
    assert (found.damaged_tensors, found.damaged_files) == ((), ())
    assert len(found.damaged_records) == 1


def test_undo_data_of_another_model_are_refused(model: Path, tmp_path: Path) -> None:
    from builders import random_tensor, write_checkpoint

    change(model, EDIT)
    other = write_checkpoint(tmp_path / "other", {"other.weight": ("BF16", random_tensor((4,)))})
    (other / "model.safetensors").replace(patch_folder(model, 1) / "undo.safetensors")
    with pytest.raises(LedgerDamaged, match=r"not here: other\.weight"):
        revert(model, by="tester")


def test_missing_undo_data_are_refused(model: Path) -> None:
    change(model, EDIT)
    (patch_folder(model, 1) / "undo.safetensors").unlink()
    before = everything(model.parent)
    with pytest.raises(LedgerDamaged, match="is missing"):
        revert(model, by="tester")
    assert everything(model.parent) == before


def test_damage_after_the_commit_is_named_and_stops_a_revert(model: Path) -> None:
    change(model, EDIT)
    assert verify(model).sound
    _flip(model / "model-00002-of-00002.safetensors", -1)
    found = verify(model)
    assert not found.sound
    assert found.damaged_tensors == ("model.layers.3.mlp.up_proj.weight",)
    assert found.damaged_files == ("model-00002-of-00002.safetensors",)
    before = everything(model.parent)
    with pytest.raises(LedgerDamaged, match=r"model\.layers\.3\.mlp\.up_proj\.weight") as caught:
        revert(model, by="tester")
    assert caught.value.code == "ledger-damaged"
    assert everything(model.parent) == before


def test_a_changed_configuration_is_damage(model: Path) -> None:
    change(model, EDIT)
    _flip(model / "config.json", 3)
    found = verify(model)
    assert (found.sound, found.damaged_files, found.damaged_tensors) == (False, ("config.json",), ())
    with pytest.raises(LedgerDamaged, match=r"config\.json"):
        revert(model, by="tester")


def test_a_changed_mode_and_a_missing_file_are_damage_and_an_added_file_is_not(model: Path) -> None:
    change(model, EDIT)
    (model / "README.md").write_text("mine")
    found = verify(model)
    assert found.sound
    assert found.added_files == ("README.md",)
    (model / "sub" / "notes.txt").unlink()
    (model / "tokenizer.json").chmod(0o600)
    found = verify(model)
    assert not found.sound
    assert sorted(found.damaged_files) == ["sub/notes.txt", "tokenizer.json"]
    assert found.original is False


def test_revert_keeps_files_that_the_ledger_does_not_know(model: Path) -> None:
    original = files(model)
    change(model, EDIT)
    (model / "README.md").write_text("mine")
    (model / "tokenizer.json").write_text('{"mine": 1}')
    revert(model, by="tester")
    assert (model / "README.md").read_text() == "mine"
    assert (model / "tokenizer.json").read_text() == '{"mine": 1}'
    shards = [name for name in original if name.endswith(".safetensors")]
    assert [files(model)[name] for name in shards] == [original[name] for name in shards]
    assert not verify(model).original  # weights, yes; the tokenizer is another one


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"serial"', '"serialx"'),
        lambda text: text.replace("planner/ledger@1", "planner/ledger@2"),
        lambda text: "",
        lambda text: "\udcff",
    ],
    ids=["cut", "unknown field", "newer", "empty", "not text"],
)
def test_a_ledger_that_cannot_be_read_stops_everything_that_would_change_it(
    model: Path, damage: Callable[[str], str]
) -> None:
    change(model, EDIT)
    path = model / ".planner" / "ledger.json"
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    before = everything(model.parent)
    plan = approved_plan(model, scale(2, layers="2"))
    for work in (
        lambda: read_ledger(model),
        lambda: verify(model),
        lambda: revert(model, by="tester"),
        lambda: apply_plan(plan, model, out=None, policy=Policy(), by="tester"),
    ):
        with pytest.raises(LedgerDamaged) as caught:
            work()
        assert caught.value.exit_status == 7
    assert everything(model.parent) == before


@pytest.mark.parametrize("place", [-300, -1], ids=["a planned tensor", "another tensor"])
def test_a_source_that_changes_while_it_is_copied_is_noticed(model: Path, tmp_path: Path, place: int) -> None:
    """Somebody else writes to the model between hashing and copying."""
    plan = approved_plan(model, EDIT)
    meddled = False

    def meddle(step: str, done: int, total: int) -> None:
        nonlocal meddled
        if step == "writing" and not meddled:
            meddled = True
            _flip(model / "model-00002-of-00002.safetensors", place)

    with pytest.raises((StorageError, StalePlan), match=r"not what was written|the plan was made for"):
        apply_plan(plan, model, out=tmp_path / "out", policy=Policy(), by="tester", progress=meddle)
    assert not (tmp_path / "out").exists()
    assert litter(tmp_path) == []
