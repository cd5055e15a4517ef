"""Records that are damaged or lie: nothing that no patch replaced is written, and nothing comes back other than it was.

Whoever made the lie made the digests in the ledger fit, unless a test says otherwise: those only find accidents.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import random_tensor
from older_ledgers import without_digests
from snapshots import ANY, change, everything, files, litter, scale, small_model

from planner.checkpoint import digest_bytes, digest_file, open_checkpoint, read_header
from planner.errors import LedgerDamaged, PatchMissing, StorageError
from planner.transaction import checked_plan, export_patch, patch_folder, read_ledger, recover, revert, verify
from planner.transaction.edits import Edits
from planner.transaction.ledger import ledger_path, reserve_path
from planner.transaction.pieces import Changes
from planner.transaction.writing import fill_stage

EDIT = scale(1.5, layers="0")
CARD = "# a card\n\nwhich took a week to write\n"


class Bias:
    """A tensor that a patch adds."""

    name, dtype, shape, like, modifications = "bias", "F32", (3,), "model.norm.weight", ("m01",)

    def content(self) -> Iterator[bytes]:
        """Its bytes."""
        yield random_tensor((3,), dtype="F32", seed=8).tobytes()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """With a card that a patch replaced."""
    folder = small_model(tmp_path / "here" / "model")
    (folder / "README.md").write_text(CARD)
    change(folder, EDIT, card=True, policy=ANY)
    return folder


def edit(path: Path, work: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    work(document)
    path.write_text(json.dumps(document))


def lie(model: Path, work: Callable[[Any], object], *, number: int = 1) -> None:
    """Edit the receipt of a patch, and make the ledger agree with it."""
    path = patch_folder(model, number) / "receipt.json"
    edit(path, work)
    fit(model, number)


def fit(model: Path, number: int = 1) -> None:
    """Make the ledger agree with the record of a patch."""

    def agree(ledger: Any) -> None:
        ledger["seal"] = None
        for event in ledger["events"]:
            if event["patch"] == number and event["kind"] == "applied":
                event["records"] = {p.name: digest_file(p) for p in patch_folder(model, number).iterdir()}

    edit(ledger_path(model), agree)


def rename(name: str, part: str = "file") -> Callable[[Any], object]:
    return lambda receipt: receipt["files"][0].update(name=name, part=part)


OUTSIDE = ["../out", "../../out", "sub/../../out", ".planner/ledger.json", "sub/out", "tokenizer.json", "", ".", "out"]


@pytest.mark.parametrize("low_space", [False, True], ids=["", "low-space"])
@pytest.mark.parametrize("part", ["file", "header"])
def test_only_what_a_patch_can_write_is_given_back(model: Path, tmp_path: Path, part: str, low_space: bool) -> None:
    lies = [*OUTSIDE, str(tmp_path / "absolute"), "model-00001-of-00002.safetensors"]
    for name in (*lies, *(["README.md"] if part == "header" else [])):
        lie(model, rename(name, part))
        before = everything(tmp_path)
        with pytest.raises(LedgerDamaged) as caught:
            revert(model, to=0, by="tester", low_space=low_space)
        assert "nothing was changed" in caught.value.hint
        assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out-of-a-stage", "sub/../../out", ".planner/ledger.json", ".planner", ""]
)
def test_a_stage_takes_no_name_that_leads_out_of_it(tmp_path: Path, name: str) -> None:
    """Whoever asks for it."""
    model, stage = small_model(tmp_path / "model"), tmp_path / "stage"
    stage.mkdir()
    before = everything(tmp_path)
    with pytest.raises(StorageError, match="is not written"):
        fill_stage(open_checkpoint(model), stage, Changes(files={"config.json": b"{}", name: b"x"}), share=False)
    assert everything(tmp_path) == before


def flip(model: Path, number: int = 1) -> None:
    """One bit of a replaced header or file in the undo data."""
    path = patch_folder(model, number) / "undo.safetensors"
    entry = next(entry for entry in read_header(path).entries if entry.name.startswith("replaced/"))
    raw = bytearray(path.read_bytes())
    raw[entry.begin + 5] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("low_space", [False, True], ids=["", "low-space"])
@pytest.mark.parametrize("known", [True, False], ids=["digests in the ledger", "no digests in the ledger"])
def test_a_flipped_bit_of_a_file_does_not_come_back(model: Path, tmp_path: Path, low_space: bool, known: bool) -> None:
    flip(model)
    if not known:
        without_digests(model)
    before = everything(tmp_path)
    for to in (None, 0):
        with pytest.raises(LedgerDamaged, match="undo"):
            revert(model, to=to, by="tester", low_space=low_space)
        assert everything(tmp_path) == before


def test_a_flipped_bit_of_a_header_of_the_index_or_of_the_configuration_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(tmp_path / "model")
    original = files(model)
    real = checked_plan.edits_of

    def more(*arguments: Any) -> Edits:
        return Edits(real(*arguments).tensors, (Bias(),), b'{"model_type": "test", "attention_bias": true}')

    monkeypatch.setattr(checked_plan, "edits_of", more)
    change(model, EDIT, policy=ANY)
    path = patch_folder(model, 1) / "undo.safetensors"
    whole = path.read_bytes()
    entries = [entry for entry in read_header(path).entries if entry.name.startswith("replaced/")]
    assert len(entries) == 3
    for entry in entries:
        raw = bytearray(whole)
        raw[entry.begin + entry.nbytes // 2] ^= 1
        path.write_bytes(raw)
        fit(model)
        before = everything(tmp_path)
        with pytest.raises(LedgerDamaged, match="as it was"):
            revert(model, by="tester")
        assert everything(tmp_path) == before
    path.write_bytes(whole)
    fit(model)
    revert(model, by="tester")
    assert files(model) == original


def test_where_the_receipt_lies_as_well_the_first_state_is_known(model: Path, tmp_path: Path) -> None:
    """In a ledger without digests of records."""
    flip(model)
    path = patch_folder(model, 1) / "undo.safetensors"
    entry = next(entry for entry in read_header(path).entries if entry.name.startswith("replaced/"))
    old = path.read_bytes()[entry.begin : entry.begin + entry.nbytes]
    edit(patch_folder(model, 1) / "receipt.json", lambda receipt: receipt["files"][0].update(before=digest_bytes(old)))
    without_digests(model)
    before = everything(tmp_path)
    with pytest.raises(LedgerDamaged, match=r"README\.md would not come back"):
        revert(model, to=0, by="tester")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("low_space", [False, True], ids=["", "low-space"])
@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
def test_a_card_that_was_edited_since_is_not_lost(tmp_path: Path, there: bool, low_space: bool) -> None:
    model = small_model(tmp_path / "it's a model")
    if there:
        (model / "README.md").write_text(CARD)
    original = files(model)
    change(model, EDIT, out=tmp_path / "out", policy=ANY)
    card = tmp_path / "out" / "README.md"
    written = card.read_bytes()
    card.write_bytes(written + b"\nthree pages of notes\n")
    before = everything(tmp_path)
    with pytest.raises(LedgerDamaged) as caught:
        revert(tmp_path / "out", by="tester", low_space=low_space)
    assert str(card) in caught.value.message
    assert everything(tmp_path) == before
    # Both ways that are named work.
    command = caught.value.hint.split("`")[1]
    assert command.startswith("mv -n ")
    subprocess.run(["sh", "-c", command], check=True)
    revert(tmp_path / "out", by="tester", low_space=low_space)
    found = files(tmp_path / "out")
    assert found.pop("README.md.edited")[1] == written + b"\nthree pages of notes\n"
    assert found == original
    assert verify(tmp_path / "out").sound


def test_a_card_that_was_edited_between_two_patches_comes_back_as_it_was_then(model: Path) -> None:
    first = files(model)
    card = model / "README.md"
    card.write_text("mine")
    between = files(model)
    change(model, scale(0.5, layers="1"), card=True, policy=ANY)
    with pytest.raises(LedgerDamaged, match="between patch 1 and patch 2") as caught:
        revert(model, to=0, by="tester")
    assert "one patch at a time" in caught.value.hint
    revert(model, by="tester")
    assert files(model) == between
    with pytest.raises(LedgerDamaged, match="changed since patch 1"):
        revert(model, by="tester")
    card.write_bytes(first["README.md"][1])
    revert(model, by="tester")
    assert card.read_text() == CARD
    assert verify(model).original


def test_a_card_that_was_edited_before_its_first_patch_is_given_back_and_still_told_of(tmp_path: Path) -> None:
    """It is neither lost nor made the truth: the history began with another one."""
    model = small_model(tmp_path / "model")
    (model / "README.md").write_text(CARD)
    change(model, EDIT, policy=ANY)
    (model / "README.md").write_text("mine")
    change(model, scale(0.5, layers="1"), card=True, policy=ANY)
    left: list[str] = []
    revert(model, to=0, by="tester", left=left.extend)
    assert (model / "README.md").read_text() == "mine"
    assert left == ["README.md"]
    found = verify(model)
    assert (found.damaged_files, found.original) == (("README.md",), False)


@pytest.mark.parametrize("reserve", [-1, 2**25, 5 * 2**30, 2**63, 2**70])
def test_no_more_is_reserved_than_a_patch_can_need(model: Path, reserve: int) -> None:
    edit(ledger_path(model), lambda ledger: ledger.update(reserve=reserve, seal=None))
    for work in (read_ledger, verify, lambda path: revert(path, by="tester")):
        with pytest.raises(LedgerDamaged):
            work(model)
    recover(model)
    assert not reserve_path(model).exists()


def test_what_a_patch_in_place_needs_is_not_too_much(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    before = files(model)
    change(model, EDIT, policy=ANY, low_space=True)
    ledger = read_ledger(model)
    assert ledger is not None
    assert reserve_path(model).stat().st_size == ledger.reserve > 0
    revert(model, by="tester", low_space=True)
    assert files(model) == before


@pytest.mark.parametrize(
    "work",
    [
        lambda receipt: receipt.update(fingerprint_before="x"),
        lambda receipt: receipt.update(fingerprint_after=""),
        lambda receipt: receipt["tensors"][0].update(name="x" * 1000),
        lambda receipt: receipt["tensors"][0].update(before="x"),
    ],
)
def test_a_damaged_record_makes_no_portable_patch(model: Path, tmp_path: Path, work: Callable[[Any], object]) -> None:
    lie(model, work)
    with pytest.raises(LedgerDamaged):
        export_patch(model, tmp_path / "x.patch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff"], ids=["missing", "no plan", "no text"])
def test_without_its_plan_there_is_no_portable_patch(model: Path, tmp_path: Path, content: bytes | None) -> None:
    plan = patch_folder(model, 1) / "plan.json"
    plan.unlink()
    if content is not None:
        plan.write_bytes(content)
    with pytest.raises(LedgerDamaged):
        export_patch(model, tmp_path / "x.patch")
    assert litter(tmp_path) == []


def test_a_patch_that_is_not_there_cannot_be_exported(model: Path, tmp_path: Path, planner: Any) -> None:
    with pytest.raises(PatchMissing):
        export_patch(model, tmp_path / "x.patch", number=2)
    found = planner("export-patch", model, "--patch", 2, "--out", tmp_path / "x.patch", "--json")
    assert found.status == 2
    assert "patch-missing" in found.err
