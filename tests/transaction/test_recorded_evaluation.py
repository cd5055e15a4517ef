"""An evaluation in the history: recorded once, kept with its patch, harmless when it is killed half way, verified."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snapshots import change, everything, files, litter, scale, small_model

from planner import fsio
from planner.checkpoint import digest_file
from planner.errors import LedgerDamaged, Locked, ReadOnly, StorageError, UnsafeInPlace
from planner.evaluation import Evaluation
from planner.fsio import calls
from planner.transaction import Ledger, patch_folder, read_ledger, recover, revert, verify
from planner.transaction.evaluated import record_evaluation
from planner.transaction.ledger import ledger_path
from planner.transaction.verify import recorded_bytes


def an_evaluation(candidate: str, *, seed: int = 0, difference: float = -0.0123, gates: bool = True) -> Evaluation:
    """As the evaluator writes it down; the numbers are made up."""
    side = {"baseline": 1.5, "candidate": 1.5 + difference, "difference": difference, "interval": [-0.02, -0.001]}
    tested = {"p_value": 0.01, "p_holm": 0.02, "mde": 0.005}
    calibrated = {
        **side,
        **tested,
        "verdict": "improved",
        "temperatures": {"baseline": 1.1, "candidate": 1.0},
        "at_limit": False,
    }
    metric = {
        **side,
        **tested,
        "name": "stories",
        "kind": "text_loss",
        "n": 12,
        "tokens": 3456,
        "test": "sign flips",
        "share_better": 0.75,
        "raw_verdict": "improved",
        "verdict": "improved",
        "nonfinite_documents": 0,
        "calibrated": calibrated,
    }
    drift = {
        "text": "a.jsonl",
        "tokens": 3456,
        "kl_mean": 0.01,
        "kl_p99": 0.1,
        "top1_agreement": 0.99,
        "nonfinite_tokens": 0,
    }
    temperature = {"difference": -0.001, "candidate": difference, "share": 0.1}
    return Evaluation.model_validate(
        {
            "baseline": {"name": "base", "fingerprint": "blake3:base"},
            "candidate": {"name": "candidate", "fingerprint": candidate},
            "suite": {"name": "small", "digest": "blake3:s", "texts": []},
            "seed": seed,
            "versions": {"planner": "0"},
            "correction": "Holm",
            "metrics": [metric],
            "drift": drift,
            "controls": {
                "metric": "stories",
                "temperature": temperature,
                "random": None,
                "no_random": "none",
                "noise_floor": None,
            },
            "gates": [{"name": "max_drift", "passed": True, "why": "small"}] if gates else [],
            "accepted": True,
        }
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint with one patch in force."""
    folder = small_model(tmp_path / "model")
    change(folder, scale(1.5, layers="0-1"))
    return folder


def ledger_of(model: Path) -> Ledger:
    ledger = read_ledger(model)
    assert ledger is not None
    return ledger


def current(model: Path) -> str:
    return ledger_of(model).current.fingerprint


def test_an_evaluation_is_kept_whole_and_summed_up(model: Path) -> None:
    weights, before = files(model), ledger_of(model)
    evaluation = an_evaluation(current(model))
    ledger = record_evaluation(model, evaluation, by="ann")
    assert ledger == ledger_of(model)
    assert files(model) == weights
    assert litter(model.parent) == litter(model / ".planner") == litter(patch_folder(model, 1)) == []
    assert ledger.serial == before.serial + 1
    assert ledger.events[:-1] == before.events
    assert ledger.model_copy(update={"serial": 1, "events": before.events, "seal": before.seal}) == before
    event = ledger.events[-1]
    assert (event.kind, event.patch, event.by, event.fingerprint) == ("evaluated", 1, "ann", current(model))
    found = event.evaluation
    assert found is not None
    assert (found.baseline, found.suite, found.accepted) == ("blake3:base", "small", True)
    (sentence,) = found.findings
    assert sentence == (
        "stories: 12 documents, 3,456 tokens: improved; raw -0.01230 (-0.02000 to -0.00100), "
        "calibrated -0.01230 (-0.02000 to -0.00100) nats per token"
    )
    kept = patch_folder(model, 1) / found.file
    assert Evaluation.model_validate_json(kept.read_text()) == evaluation
    assert found.digest == event.records[found.file] == digest_file(kept)
    assert verify(model).sound


def test_each_evaluation_has_a_file_of_its_own_and_the_same_one_is_recorded_once(model: Path) -> None:
    for seed in (0, 1, 1, 0):
        record_evaluation(model, an_evaluation(current(model), seed=seed, gates=False), by="ann")
    events = [event for event in ledger_of(model).events if event.evaluation]
    assert [event.evaluation.file for event in events if event.evaluation] == ["evaluation-1.json", "evaluation-2.json"]
    assert all(event.evaluation and event.evaluation.accepted is None for event in events)
    change(model, scale(2, layers="2"))
    record_evaluation(model, an_evaluation(current(model)), by="ann")
    assert {path.name for path in patch_folder(model, 2).glob("evaluation*")} == {"evaluation-1.json"}
    # The records go with the patch, through later transactions and through its way back.
    revert(model, to=1, by="ann")
    assert verify(model).sound
    revert(model, to=0, by="ann")
    assert verify(model).sound
    assert [event.kind for event in ledger_of(model).events].count("evaluated") == 3


def test_where_there_is_nothing_to_record_nothing_is_written(model: Path, tmp_path: Path) -> None:
    bare = small_model(tmp_path / "bare")
    before = everything(tmp_path)
    assert record_evaluation(bare, an_evaluation(current(model)), by="ann") is None
    assert record_evaluation(model, an_evaluation("blake3:another"), by="ann") is None
    assert everything(tmp_path) == before
    revert(model, by="ann")
    before = everything(tmp_path)
    assert record_evaluation(model, an_evaluation(current(model)), by="ann") is None, "no patch is in force"
    assert everything(tmp_path) == before


def test_it_waits_for_nobody_and_says_so(model: Path) -> None:
    before = everything(model)
    with fsio.lock(model.parent / f".{model.name}.planner-lock"), pytest.raises(Locked):
        record_evaluation(model, an_evaluation(current(model)), by="ann")
    assert everything(model) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_error_of_the_disk(model: Path) -> None:
    model.parent.chmod(0o500)
    try:
        with pytest.raises(ReadOnly):
            record_evaluation(model, an_evaluation(current(model)), by="ann")
    finally:
        model.parent.chmod(0o700)


class Killed(BaseException):
    """As if the process had gone."""


def test_killed_anywhere_the_ledger_is_the_old_one_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each of its system calls that change something, in turn."""
    model = small_model(tmp_path / "model")
    change(model, scale(1.5, layers="0"))
    evaluation = an_evaluation(current(model))
    old = ledger_of(model)
    seen: set[int] = set()
    for point in range(200):
        with monkeypatch.context() as patched:
            count = _dying_at(patched, point)
            try:
                record_evaluation(model, evaluation, by="ann")
            except Killed:
                pass
            else:
                assert count() <= point
        ledger = ledger_of(model)
        seen.add(ledger.serial)
        assert ledger.serial in (old.serial, old.serial + 1)
        assert verify(model).sound
        if ledger.serial > old.serial:
            break
    assert seen == {old.serial, old.serial + 1}
    assert point > 8, "the calls were seen"
    recover(model)
    record_evaluation(model, an_evaluation(current(model), seed=9), by="ann")
    assert verify(model).sound
    assert litter(tmp_path) == []


def _dying_at(patched: pytest.MonkeyPatch, point: int) -> Callable[[], int]:
    count = 0
    for name in calls.__all__:
        real = getattr(calls, name)

        def dying(*arguments: Any, _real: Callable[..., Any] = real, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > point:
                raise Killed
            return _real(*arguments, **options)

        patched.setattr(calls, name, dying)
    return lambda: count


@pytest.mark.parametrize("name", ["plan.json", "receipt.json", "undo.safetensors", "evaluation-1.json"])
def test_verify_names_a_record_that_was_changed_or_lost(model: Path, name: str) -> None:
    record_evaluation(model, an_evaluation(current(model)), by="ann")
    path = patch_folder(model, 1) / name
    known = set().union(*(event.records for event in ledger_of(model).events))
    assert name in known
    sound = verify(model)
    assert sound.sound
    assert sound.damaged_records == ()
    there = [patch_folder(model, 1) / one for one in known]
    assert recorded_bytes(model) == sum(one.stat().st_size for one in there)
    assert sound.bytes == sum(len(content) for _, content in files(model).values()) + recorded_bytes(model)
    content = path.read_bytes()
    for damage in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], None):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        found = verify(model)
        assert not found.sound
        assert found.damaged_records == (f".planner/patches/0001/{name}",)
        assert found.damaged_tensors == found.damaged_files == ()
    path.write_bytes(content)
    assert verify(model).sound


def test_the_bytes_it_tells_of_are_the_bytes_it_hashed(model: Path) -> None:
    record_evaluation(model, an_evaluation(current(model)), by="ann")
    told: list[int] = []
    found = verify(model, progress=told.append)
    headers = sum(8 + int.from_bytes(shard.read_bytes()[:8], "little") for shard in model.glob("*.safetensors"))
    assert sum(told) == found.bytes - headers


def test_a_record_that_climbs_out_is_damage_and_is_not_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    ledger = json.loads(ledger_path(model).read_text())
    for name in ("../../../../secret", str(tmp_path / "secret"), "..", ""):
        ledger["events"][0]["records"] = {name: digest_file(tmp_path / "secret")}
        ledger_path(model).write_text(json.dumps(ledger))
        found = verify(model)
        assert not found.sound
        assert len(found.damaged_records) == 1


def test_what_another_process_left_half_written_goes(model: Path) -> None:
    for path in (model / ".planner" / ".ledger.json.123.tmp", patch_folder(model, 1) / ".evaluation-1.json.123.tmp"):
        path.write_text("{")
    record_evaluation(model, an_evaluation(current(model)), by="ann")
    assert litter(model / ".planner") == litter(patch_folder(model, 1)) == []


def test_nothing_is_written_through_a_link_in_the_ledger(model: Path, tmp_path: Path) -> None:
    evaluation = an_evaluation(current(model))
    patch_folder(model, 1).rename(tmp_path / "elsewhere")
    patch_folder(model, 1).symlink_to(tmp_path / "elsewhere")
    before = everything(tmp_path)
    with pytest.raises(UnsafeInPlace):
        record_evaluation(model, evaluation, by="ann")
    assert everything(tmp_path) == before


def test_another_name_of_the_checkpoint_is_no_way_around_the_lock(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(model)
    with fsio.lock(model.parent / f".{model.name}.planner-lock"), pytest.raises(Locked):
        record_evaluation(link, an_evaluation(current(model)), by="ann")
    assert record_evaluation(link, an_evaluation(current(model)), by="ann") == ledger_of(model)


def test_a_ledger_that_cannot_be_read_is_an_error(model: Path) -> None:
    evaluation = an_evaluation(current(model))
    ledger_path(model).write_text("{")
    with pytest.raises(LedgerDamaged):
        record_evaluation(model, evaluation, by="ann")
    assert issubclass(LedgerDamaged, StorageError)
