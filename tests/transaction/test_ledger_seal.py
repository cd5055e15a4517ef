"""The seal of the ledger, and what else shows that a history was changed by accident."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snapshots import ANY, approved_plan, change, everything, files, scale, small_model

from planner.checkpoint import digest_file
from planner.errors import LedgerDamaged
from planner.transaction import Ledger, apply_plan, patch_folder, read_ledger, revert, verify
from planner.transaction.ledger import ledger_path
from planner.transaction.seal import require_seal, seal_holds, sealed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


@pytest.fixture
def patched(model: Path) -> Path:
    change(model, scale(1.5, layers="0"), policy=ANY)
    return model


def ledger_of(model: Path) -> Ledger:
    ledger = read_ledger(model)
    assert ledger is not None
    return ledger


def edit(model: Path, work: Callable[[Any], object]) -> None:
    path = ledger_path(model)
    document = json.loads(path.read_text())
    work(document)
    path.write_text(json.dumps(document))


def test_every_ledger_has_one_that_holds(model: Path, tmp_path: Path) -> None:
    for work in (
        lambda: change(model, scale(1.5, layers="0"), policy=ANY),
        lambda: change(model, scale(1.5, layers="1"), policy=ANY, low_space=True),
        lambda: revert(model, by="tester"),
        lambda: revert(model, by="tester", low_space=True),
    ):
        work()
        ledger = ledger_of(model)
        assert ledger.seal is not None
        assert seal_holds(ledger)
        assert verify(model).seal is True
    change(model, scale(2, layers="0"), policy=ANY, out=tmp_path / "out")
    assert verify(tmp_path / "out").seal is True


EDITS: dict[str, Callable[[Any], object]] = {
    "who": lambda ledger: ledger["events"][0].update(by="somebody else"),
    "when": lambda ledger: ledger["events"][0].update(at="2020-01-01T00:00:00Z"),
    "goal": lambda ledger: ledger["events"][0].update(goal="another"),
    "approved by": lambda ledger: ledger["events"][0].update(approved_by=["the boss"]),
    "signed by": lambda ledger: ledger["events"][0].update(signed_by="the boss"),
    "one digit of the original": lambda ledger: ledger["original"].update(
        fingerprint=ledger["original"]["fingerprint"][:-1] + "x"
    ),
    "parent": lambda ledger: ledger.update(parent={"name": "gpt", "fingerprint": "blake3:0"}),
    "distance": lambda ledger: ledger.update(inherited={"model.norm.weight": 0.1}),
    "serial": lambda ledger: ledger.update(serial=7),
    "seal": lambda ledger: ledger.update(seal="blake3:" + "0" * 64),
}


@pytest.mark.parametrize("work", EDITS.values(), ids=EDITS.keys())
def test_an_edited_ledger_is_damage(patched: Path, work: Callable[[Any], object], planner: Any) -> None:
    assert verify(patched).sound
    edit(patched, work)
    found = verify(patched)
    assert (found.sound, found.seal) == (False, False)
    assert found.damaged_files == found.damaged_tensors == found.damaged_records == ()
    with pytest.raises(LedgerDamaged) as caught:
        require_seal(patched, ledger_of(patched))
    assert "ledger.json" in caught.value.hint
    words = planner("verify", patched)
    assert words.status == 7
    assert "seal" in words.out
    assert "put back from a copy: .planner/ledger.json" in words.err
    document = planner("verify", patched, "--json")
    assert (document.status, document.json["seal"], document.json["sound"]) == (7, False, False)


def test_nothing_is_added_to_an_edited_ledger(patched: Path, tmp_path: Path) -> None:
    edit(patched, lambda ledger: ledger["events"][0].update(goal="another"))
    before = everything(tmp_path)
    with pytest.raises(LedgerDamaged, match="seal") as caught:
        change(patched, scale(1.5, layers="1"), policy=ANY)
    assert everything(tmp_path) == before
    assert "--out DIR" in caught.value.hint
    change(patched, scale(1.5, layers="1"), policy=ANY, out=tmp_path / "out")
    assert verify(tmp_path / "out").sound


def test_a_plan_for_the_weights_that_a_damaged_model_should_have_points_to_the_damage(patched: Path) -> None:
    plan = approved_plan(patched, scale(1.5, layers="1"), policy=ANY)
    shard = min(patched.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(LedgerDamaged, match="not what its ledger says") as caught:
        apply_plan(plan, patched, out=None, policy=ANY, by="tester")
    assert "planner verify" in caught.value.hint


def test_how_it_is_written_does_not_matter(patched: Path) -> None:
    """Only what it says: a tool that indents it otherwise breaks nothing."""
    edit(patched, lambda ledger: ledger.update(events=[dict(reversed(event.items())) for event in ledger["events"]]))
    assert verify(patched).sound


def test_a_revert_works_and_does_not_make_a_broken_seal_whole(model: Path) -> None:
    before = files(model)
    change(model, scale(1.5, layers="0"), policy=ANY)
    change(model, scale(1.5, layers="1"), policy=ANY)
    edit(model, EDITS["goal"])
    revert(model, by="tester")
    assert verify(model).seal is False
    revert(model, by="tester")
    assert files(model) == before
    assert verify(model).seal is False
    require_seal(model, None)


def test_a_ledger_of_an_earlier_version_has_none_until_it_is_written_again(patched: Path, planner: Any) -> None:
    edit(patched, lambda ledger: ledger.pop("seal"))
    found = verify(patched)
    assert (found.sound, found.seal) == (True, None)
    require_seal(patched, ledger_of(patched))
    assert planner("verify", patched).status == 0
    change(patched, scale(1.5, layers="1"), policy=ANY)
    assert verify(patched).seal is True


def test_what_was_written_without_a_field_of_a_later_version_keeps_its_seal(patched: Path) -> None:
    """A default that is spelled out is the same ledger."""
    edit(patched, lambda ledger: ledger["events"][0].pop("evaluation"))
    assert verify(patched).sound
    ledger = ledger_of(patched)
    assert sealed(ledger.model_copy(update={"seal": None}), follows=None) == ledger


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("approved_by", ["the boss"]),
        ("approved_by_flag", True),
        ("signed_by", "the boss"),
        ("by", "somebody else"),
        ("plan", "another"),
        ("changed_elements", 1),
    ],
)
def test_an_event_that_is_not_what_its_receipt_says_is_damage(
    patched: Path, field: str, value: Any, planner: Any
) -> None:
    """Also where somebody took the seal away."""
    edit(patched, lambda ledger: [ledger.pop("seal"), ledger["events"][0].update({field: value})])
    found = verify(patched)
    assert found.damaged_events == (f"patch 1: its receipt has another {field} than the ledger",)
    assert not found.sound
    words = planner("verify", patched)
    assert words.status == 7
    assert f"another {field}" in words.out


def test_events_of_every_kind_agree_with_their_receipts(model: Path) -> None:
    change(model, scale(1.5, layers="0"), scale(2, layers="1"), policy=ANY)
    change(model, scale(1.5, layers="1"), policy=ANY, card=True)
    assert verify(model).sound
    revert(model, by="tester")
    assert verify(model).sound


def test_what_verify_finds_has_a_next_step(patched: Path, planner: Any) -> None:
    undo = patch_folder(patched, 1) / "undo.safetensors"
    undo.write_bytes(undo.read_bytes() + b"x")
    (patched / "tokenizer.json").unlink()
    digest = digest_file(undo)
    found = planner("verify", patched)
    assert found.status == 7
    assert "put back from a copy, with their modes: tokenizer.json" in found.err
    assert "put back from a copy: .planner/patches/0001/undo.safetensors" in found.err
    assert digest_file(undo) == digest
