"""Damage that `verify` names is still named after the next transaction: no ledger takes what it finds for the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snapshots import ANY, change, everything, files, scale, small_model

from planner.checkpoint import digest_file
from planner.errors import LedgerDamaged
from planner.transaction import Ledger, read_ledger, revert, verify
from planner.transaction.ledger import ledger_path

WAYS = {
    "revert": lambda model, left: revert(model, by="tester", left=left),
    "revert low-space": lambda model, left: revert(model, by="tester", low_space=True, left=left),
    "apply": lambda model, left: change(model, scale(2, layers="2"), policy=ANY),
    "apply low-space": lambda model, left: change(model, scale(2, layers="2"), policy=ANY, low_space=True),
}
Way = Callable[[Path, Callable[[tuple[str, ...]], None]], object]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = small_model(tmp_path / "model")
    (folder / "merges.txt").write_text("a b")
    change(folder, scale(1.5, layers="0"), policy=ANY)
    return folder


def ledger_of(model: Path) -> Ledger:
    ledger = read_ledger(model)
    assert ledger is not None
    return ledger


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_files_that_were_damaged_are_still_named(model: Path, way: Way) -> None:
    (model / "tokenizer.json").write_text('{"a": 9}')
    (model / "merges.txt").unlink()
    (model / "sub" / "notes.txt").chmod(0o644)
    (model / "added.txt").write_text("mine")
    (model / "model-00001-of-00002.safetensors").chmod(0o600)
    named = {"tokenizer.json", "merges.txt", "sub/notes.txt", "model-00001-of-00002.safetensors"}
    before, found = files(model), verify(model)
    assert set(found.damaged_files) == named
    told: list[str] = []
    way(model, told.extend)
    assert set(told) in (named, set())
    found = verify(model)
    assert set(found.damaged_files) == named
    assert found.added_files == ("added.txt",)
    assert (found.damaged_tensors, found.damaged_records, found.seal) == ((), (), True)
    after = files(model)
    assert all(after[name] == content for name, content in before.items() if not name.endswith(".safetensors"))
    # Put right, all is well; what was recorded is what was there in the beginning.
    (model / "tokenizer.json").write_text('{"a": 1}')
    (model / "merges.txt").write_text("a b")
    (model / "sub" / "notes.txt").chmod(0o600)
    (model / "model-00001-of-00002.safetensors").chmod(0o644)
    assert verify(model).sound


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("whole", [False, True], ids=["", "digests of whole shards"])
def test_a_damaged_header_is_refused_as_damaged_weights_are(model: Path, tmp_path: Path, way: Way, whole: bool) -> None:
    if whole:  # as versions before 0.3 wrote them
        ledger = ledger_of(model)
        said = {
            name: state.model_copy(update={"digest": digest_file(model / name)})
            for name, state in ledger.current.files.items()
        }
        current = ledger.current.model_copy(update={"files": said})
        old = ledger.model_copy(update={"current": current, "seal": None})
        ledger_path(model).write_bytes(old.model_dump_json().encode())
        assert verify(model).sound
    for shard in sorted(model.glob("*.safetensors")):
        raw = shard.read_bytes()
        assert b'"format":"pt"' in raw
        shard.write_bytes(raw.replace(b'"format":"pt"', b'"format":"px"'))
        before = everything(tmp_path)
        with pytest.raises(LedgerDamaged, match=f"the header of {shard.name}"):
            way(model, lambda _: None)
        assert everything(tmp_path) == before
        shard.write_bytes(raw)
    way(model, lambda _: None)
    assert verify(model).sound


def test_what_was_damaged_is_the_original_again_when_it_is_put_back(model: Path) -> None:
    (model / "tokenizer.json").write_text("damaged")
    revert(model, to=0, by="tester")
    assert not verify(model).original
    (model / "tokenizer.json").write_text('{"a": 1}')
    assert verify(model).original


def test_the_command_says_what_it_left(model: Path, planner: Any) -> None:
    (model / "tokenizer.json").write_text("damaged")
    found = planner("revert", model)
    assert found.status == 0
    assert "not as the ledger says, and left so: tokenizer.json" in found.out
    assert "planner verify" in found.out
    change(model, scale(1.5, layers="0"), policy=ANY)
    assert planner("revert", model, "--json").json["left_so"] == ["tokenizer.json"]
    (model / "tokenizer.json").write_text('{"a": 1}')
    change(model, scale(1.5, layers="0"), policy=ANY)
    assert "left so" not in planner("revert", model).out
