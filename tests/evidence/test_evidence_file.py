"""Evidence on disk: both files or none, bound to one another; what is not evidence is refused with a next step."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from made import grouping, made

from planner import fsio
from planner.errors import EvidenceUnusable, NoSpace, PlannerError, UsageError
from planner.evidence import (
    ArraysRef,
    Direction,
    EvidenceFile,
    Measured,
    Objective,
    Sides,
    TextUsed,
    arrays_bytes,
    arrays_path,
    ceilings_of,
    gauge_of,
    load_arrays,
    read_evidence,
    stability_of,
    tensors_of,
    write_evidence,
)
from planner.plan import CheckpointRef

SCHEMA = Path(__file__).parents[2] / "schemas" / "evidence.schema.json"
DIGEST = "blake3:" + "1" * 64


@functools.cache
def measured() -> Measured:
    found = made(grouping([3.0, 4.0, 5.0, 6.0], [0, 0, 1, 1], [0, 0, 1, 1]))
    random = np.random.default_rng(0)
    direction = Direction(random.normal(size=(3, 2)), np.array([2.0, 1.0]), random.normal(size=(2, 4)))
    return Measured(found.layout, found.goal, found.drift, found.sets, {"a.weight": direction})


@functools.cache
def evidence() -> EvidenceFile:
    sides = Sides.of(measured())
    ceilings, damping = ceilings_of(sides)
    return EvidenceFile(
        id=DIGEST,
        created="2026-01-01T00:00:00Z",
        checkpoint=CheckpointRef(name="m", fingerprint=DIGEST),
        versions={"planner": "0"},
        device="cpu",
        dtype="float32",
        seed=0,
        max_tokens=None,
        groups=4,
        texts=(TextUsed(role="goal", file="t.jsonl", digest=DIGEST, documents=2, tokens=7),),
        objective=Objective(kind="contrast", loss=1.0, calibrated_loss=0.9, temperature=1.1),
        stability=stability_of(sides),
        gauge=gauge_of(measured()),
        ceilings=ceilings,
        tensors=tensors_of(measured(), sides, {}, damping),
        units=(),
        not_measured={"x": "why"},
        arrays=ArraysRef(file="evidence.safetensors", digest=DIGEST),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_evidence(tmp_path / "e.json", evidence(), arrays_bytes(measured()))
    return tmp_path / "e.json"


def test_what_was_written_is_what_is_read(path: Path) -> None:
    found = read_evidence(path)
    assert found.arrays.file == "e.safetensors"
    assert found == evidence().model_copy(update={"arrays": found.arrays})
    arrays = load_arrays(path, found)
    for name, scores in measured().sets.items():
        assert np.array_equal(arrays.sets[name].tensors, scores.tensors)
        assert np.array_equal(arrays.sets[name].units, scores.units)
        assert arrays.sets[name].units.dtype == np.float32
    for field in ("weights", "side", "merged"):
        assert np.array_equal(getattr(arrays.goal, field), getattr(measured().goal, field))
    kept, given = arrays.directions["a.weight"], measured().directions["a.weight"]
    np.testing.assert_allclose(
        kept.left @ np.diag(kept.strengths) @ kept.right, given.left * given.strengths @ given.right, rtol=1e-5
    )
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(path.read_text()))


def edited(path: Path, change: Any) -> Path:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=2))
    return path


FOREIGN = {
    "another version": (lambda d: d.update(schema="planner/evidence@2"), "another version", "planner probe"),
    "another file": (lambda d: d.update(schema="planner/plan@1"), "no evidence file: schema", "planner probe"),
    "a field too many": (lambda d: d.update(more=1), "no evidence file: more", "planner probe"),
    "a field too few": (lambda d: d.pop("gauge"), "no evidence file: gauge", "planner probe"),
    "NaN": (lambda d: d["objective"].update(loss=float("nan")), "objective.loss", "planner probe"),
    "a path": (lambda d: d["arrays"].update(file="../e.safetensors"), "arrays.file", "planner probe"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says", "next_step"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_evidence_is_refused(path: Path, change: Any, says: str, next_step: str) -> None:
    with pytest.raises(EvidenceUnusable) as raised:
        read_evidence(edited(path, change))
    assert says in raised.value.message
    assert next_step in raised.value.hint


@pytest.mark.parametrize("content", ["", "[]", "null", '"text"', "{", "[" * 5000, '{"schema": 1}', "\ufeff{}"])
def test_foreign_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(EvidenceUnusable, match="is no evidence file") as raised:
        read_evidence(tmp_path / "e.json")
    assert raised.value.hint


def test_a_missing_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(PlannerError) as raised:
        read_evidence(tmp_path / "e.json")
    assert raised.value.exit_status == 2
    (tmp_path / "e.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlannerError, match="UTF-8"):
        read_evidence(tmp_path / "e.json")


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-8], lambda data: b"", lambda data: b"{}" * 40])
def test_arrays_that_are_not_those_of_the_evidence(path: Path, damage: Any) -> None:
    arrays_path(path).write_bytes(damage(arrays_path(path).read_bytes()))
    with pytest.raises(EvidenceUnusable) as raised:
        load_arrays(path, read_evidence(path))
    assert str(arrays_path(path)) in raised.value.message
    assert "keep both files" in raised.value.hint


def test_arrays_that_are_missing(path: Path) -> None:
    arrays_path(path).unlink()
    with pytest.raises(EvidenceUnusable, match="No such file"):
        load_arrays(path, read_evidence(path))


def held(**changes: Any) -> bytes:
    from safetensors.numpy import load, save

    arrays = load(arrays_bytes(measured()))
    for name, value in changes.items():
        key = name.replace("__", ".")
        if value is None:
            del arrays[key]
        else:
            arrays[key] = np.ascontiguousarray(value(arrays[key]))
    return save(arrays)


WRONG = {
    "an array is missing": {"raw__units": None},
    "too few groups": {"raw__tensors": lambda a: a[:2]},
    "no matrix": {"fisher__tensors": np.ravel},
    "units of other tensors": {"fisher__units": lambda a: a[:, 1:]},
    "no weight": {"goal__weights": np.zeros_like},
    "no group of the goal": {"goal__side": np.ones_like},
    "a third side": {"goal__side": lambda a: a + 1},
    "places without groups": {"goal__merged": lambda a: a * 2},
    "places below zero": {"goal__merged": lambda a: a - 1},
    "NaN": {"raw__units": lambda a: a * np.nan},
    "other directions": {"direction__left__a__weight": lambda a: a[:2]},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_arrays_that_fit_nothing_are_refused_even_under_the_right_digest(tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "e.json"
    found = write_evidence(path, evidence(), held(**changes))
    with pytest.raises(EvidenceUnusable):
        load_arrays(path, found)


@pytest.mark.parametrize("error", [KeyboardInterrupt, NoSpace("full", hint="")])
def test_both_files_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    inner, calls = fsio.replace_file, []

    def fails(path: Path, content: Any, **more: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise error
        inner(path, content, **more)

    monkeypatch.setattr(fsio, "replace_file", fails)
    with pytest.raises((KeyboardInterrupt, NoSpace)):
        write_evidence(tmp_path / "e.json", evidence(), arrays_bytes(measured()))
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_arrays_never_overwrite_the_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name of the arrays"):
        write_evidence(tmp_path / "e.safetensors", evidence(), b"")
