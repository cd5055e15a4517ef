"""Undo data that are small: what several patterns became the same, and nothing else; and the way back through them."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint, write_shard
from faults import Disk, installed, interrupt, kill, refuse, run_forked
from hypothesis import given, settings
from hypothesis import strategies as st
from older_ledgers import without_digests
from snapshots import ANY, MEMORY, approved_plan, change, everything, files, litter, scale, short_pieces, stored

from planner.checkpoint import digest_file, open_checkpoint
from planner.errors import Interrupted, LedgerDamaged, StorageError, UnsafeInPlace
from planner.fsio import calls
from planner.plan import Plan
from planner.transaction import Receipt, apply_plan, patch_folder, recover, revert, verify
from planner.transaction.ledger import ledger_path
from planner.transaction.types import Frames
from planner.transaction.undo import data as undo
from planner.transaction.undo.residuals import Coding, pack_table, unpack_table

NAMES = [f"model.layers.{layer}.w.weight" for layer in range(4)]
ELEMENTS = 20_000  # 40 KB: enough for the loops in machine code, and for a residual
PIECE = 4096 * 3
"""So short that a tensor has several, and an odd rest."""


@pytest.fixture(params=[False, True], ids=["by the caller", "in threads"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards, and short pieces."""
    short_pieces(monkeypatch, PIECE, threads=request.param)
    tensors: dict[str, tuple[str, Any]] = {
        name: (dtype, random_tensor((ELEMENTS,), dtype=dtype, seed=seed))
        for seed, (name, dtype) in enumerate(zip(NAMES, ("BF16", "F16", "F32", "BF16"), strict=True))
    }
    return write_checkpoint(tmp_path / "model", tensors, shards=2)


@given(
    kind=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 2**32 - 1),
    distinct=st.sampled_from([1, 2, 3, 200, 60_000]),
    size=st.integers(0, 5000),
)
@settings(max_examples=60, deadline=None)
def test_a_residual_and_the_new_patterns_are_the_old_ones(kind: Any, seed: int, distinct: int, size: int) -> None:
    """For any table at all, the constant one and the identity among them."""
    generator = np.random.default_rng(seed)
    count = 2 ** (8 * np.dtype(kind).itemsize)
    table = generator.integers(0, min(distinct, count), count).astype(kind)
    if distinct == 3:
        table = generator.permutation(count).astype(kind)
    coding = Coding(table)
    old = generator.integers(0, count, size).astype(kind)
    new, back, room = np.empty_like(old), np.empty_like(old), np.empty(2 * size + 8, np.uint8)
    changed, length = coding.forth(old, new, room)
    assert np.array_equal(new, table[old])
    assert changed == np.count_nonzero(old != new)
    assert coding.forth(old, new, None) == (changed, 0)
    preimages = np.bincount(table, minlength=count)[new]
    bits = sum(int(k - 1).bit_length() for k in preimages.tolist())
    assert length == -(-bits // 8)  # what information theory asks for, each element by itself, and no bit more
    assert coding.back(new, back, room[:length].copy(), 0) == length
    assert np.array_equal(back, old)
    assert np.array_equal(unpack_table(pack_table(table)), table)
    if length:
        with pytest.raises(ValueError, match="not that of these elements"):
            coding.back(new, back, room[: length - 1].copy(), 0)


def test_patterns_that_no_old_one_leads_to_are_refused() -> None:
    coding = Coding(np.zeros(2**16, np.uint16))
    with pytest.raises(ValueError, match="not that of these elements"):
        coding.back(np.ones(3, np.uint16), np.empty(3, np.uint16), np.zeros(99, np.uint8), 0)


@pytest.mark.parametrize("packed", [b"", b"no zlib", zlib.compress(b"x" * 300), zlib.compress(bytes(10**8))])
def test_what_is_no_table_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="no table"):
        unpack_table(packed)
    with pytest.raises(ValueError, match="no table"):
        Coding(np.zeros(7, np.uint16))


def _receipt(model: Path, number: int) -> Receipt:
    return Receipt.model_validate_json((patch_folder(model, number) / "receipt.json").read_text())


def test_a_scaled_tensor_keeps_little_and_comes_back(model: Path) -> None:
    before = files(model)
    receipt = change(model, scale(1.02, layers="0-3"), policy=ANY)
    undo = {tensor.name: tensor.undo for tensor in receipt.tensors}
    coded = [found.table for found in undo.values() if isinstance(found, Frames) and found.table]
    assert undo.keys() == set(NAMES)
    assert len(coded) == 3  # F32 has no table
    assert len(set(coded)) == 2  # one a dtype
    kept = sizes(patch_folder(model, 1))
    assert kept.keys() == {"plan.json", "receipt.json", "undo.safetensors"}
    assert receipt.undo_bytes == kept["undo.safetensors"]
    assert receipt.undo_bytes < 0.03 * receipt.changed_bytes  # measured: 0.0175, a third of it the two tables
    assert verify(model).sound
    revert(model, by="tester")
    assert files(model) == before
    assert sizes(patch_folder(model, 1)).keys() == {"plan.json", "receipt.json"}


def sizes(folder: Path) -> dict[str, int]:
    """Size of every file of a patch."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_what_destroys_everything_keeps_the_bytes_and_hardly_more(model: Path) -> None:
    before = files(model)
    receipt = change(model, {"target": {"tensors": [NAMES[1]]}, "operation": {"kind": "zero"}}, policy=ANY)
    assert receipt.undo_bytes < 1.01 * receipt.changed_bytes + 1024  # the header, and a table of one value
    revert(model, by="tester")
    assert files(model) == before


@pytest.mark.parametrize("file", [2**25, 1], ids=["one file", "a file a piece"])
def test_every_state_comes_back_through_residuals(model: Path, monkeypatch: pytest.MonkeyPatch, file: int) -> None:
    monkeypatch.setattr(undo, "_FILE", file)
    bound = {"target": {"layers": "0,3"}, "operation": {"kind": "clamp", "minimum": -0.02, "maximum": 0.05}}
    edits = ([scale(0.7, layers="0-3")], [bound], [{"target": {"layers": "3"}, "operation": {"kind": "zero"}}])
    edits = (*edits, [scale(1.02, layers="0-1")], [scale(-1.5, layers="0,2")])
    states = [files(model)]
    for edit in edits:
        change(model, *edit, policy=ANY)
        states.append(files(model))
    assert (len(sizes(patch_folder(model, 1))) > 6) == (file == 1)
    for patch in (4, 2, 0):
        revert(model, to=patch, by="tester")
        assert files(model) == states[patch]
        assert verify(model).sound
    assert verify(model).original


def as_before_06(model: Path, old: dict[str, Any], *, coded: bool = True) -> None:
    """Rewrite the record of the last patch as versions before 0.6 wrote it; `old` are the tensors before it.

    What was done by a table has a residual and the others are kept as they were; so are all if not `coded`.
    """
    numpy = pytest.importorskip("safetensors.numpy")
    new, found = stored(model), open_checkpoint(model).tensors
    ledger = json.loads(ledger_path(model).read_text())
    event = ledger["events"][-1]
    folder = patch_folder(model, event["patch"])
    receipt = json.loads((folder / "receipt.json").read_text())
    arrays: dict[str, Any] = {}
    residuals: dict[str, Any] = {}
    for tensor in receipt["tensors"]:
        del tensor["cumulative_change"]
        name, frames = tensor["name"], tensor.pop("undo")
        tensor["undo"] = None
        if not coded or frames["table"] is None:
            arrays[name] = (found[name].dtype, found[name].shape, old[name].tobytes())
            continue
        packed = numpy.load_file(folder / "undo.safetensors")[frames["table"]].tobytes()
        coding = Coding(unpack_table(packed))
        table = f"undo/{frames['table']}"
        arrays[table] = ("U8", (len(packed),), packed)
        parts = [residual(coding, old[name][at : at + PIECE]) for at in range(0, old[name].size, PIECE)]
        tensor["undo"] = {"table": table, "arrays": []}
        for these in (parts[:2], parts[2:]):  # an array is of whole pieces
            array = f"undo/residual/{len(residuals)}"
            residuals[array] = ("U8", (len(b"".join(these)),), b"".join(these))
            tensor["undo"]["arrays"].append(array)
        assert np.array_equal(coding.table[old[name].view(coding.pattern)], new[name].view(coding.pattern))
    write_shard(folder / "undo.safetensors", arrays)
    if residuals:
        write_shard(folder / "undo-00001.safetensors", residuals)
    (folder / "receipt.json").write_text(json.dumps(receipt))
    event["records"] = {path.name: digest_file(path) for path in sorted(folder.iterdir())}
    del event["largest_change"], ledger["inherited"], ledger["seal"]
    ledger_path(model).write_text(json.dumps(ledger))


def residual(coding: Coding, old: Any) -> bytes:
    """Of one piece."""
    patterns = old.view(coding.pattern)
    room = np.empty(2 * patterns.size + 8, np.uint8)
    _, size = coding.forth(patterns, np.empty_like(patterns), room)
    return room[:size].tobytes()


def clamp(bound: float) -> dict[str, Any]:
    """By a table in one tensor, and without one in the other."""
    return {"target": {"layers": "0,2"}, "operation": {"kind": "clamp", "minimum": -0.02, "maximum": bound}}


@pytest.mark.parametrize("low_space", [False, True])
def test_undo_data_of_an_earlier_version_still_undo(model: Path, low_space: bool) -> None:
    """Residuals, and tensors as they were, below a patch of this version and above one."""
    states = [files(model)]
    for number, edit in enumerate((scale(0.7, layers="0-3"), clamp(0.05), scale(1.5, layers="1-3"), clamp(0.01))):
        old = stored(model)
        change(model, edit, policy=ANY, low_space=low_space and number == 2)
        if number in (0, 1, 3):
            as_before_06(model, old)
        assert verify(model).sound
        states.append(files(model))
    if low_space:  # residuals are read from their beginning, and that cannot be begun again in the middle
        before = everything(model.parent)
        with pytest.raises(UnsafeInPlace, match="earlier version") as caught:
            revert(model, to=2, by="tester", low_space=True)
        assert caught.value.hint == "leave --low-space out"
        assert everything(model.parent) == before
    for patch in (3, 1, 0):
        revert(model, to=patch, by="tester")
        assert files(model) == states[patch]
    assert verify(model).original


def test_tensors_as_they_were_are_given_back_with_low_space_too(model: Path) -> None:
    states = [files(model)]
    for edit in (scale(0.7, layers="0-3"), clamp(0.05)):
        old = stored(model)
        change(model, edit, policy=ANY)
        as_before_06(model, old, coded=False)
        states.append(files(model))
    revert(model, by="tester", low_space=True)
    assert files(model) == states[1]
    revert(model, by="tester", low_space=True)
    assert files(model) == states[0]


def test_undo_data_of_the_first_versions_still_undo(model: Path) -> None:
    """Their receipts know neither `undo` nor `files`; every tensor is there as it was."""
    before, old = files(model), stored(model)
    change(model, {"target": {"layers": "0,2"}, "operation": {"kind": "zero"}}, policy=ANY)
    as_before_06(model, old, coded=False)
    path = patch_folder(model, 1) / "receipt.json"
    receipt = json.loads(path.read_text())
    assert receipt.pop("files") == []
    assert [tensor.pop("undo") for tensor in receipt["tensors"]] == [None, None]
    path.write_text(json.dumps(receipt))
    without_digests(model)
    change(model, scale(1.5, layers="1-3"), policy=ANY)
    revert(model, to=0, by="tester")
    assert files(model) == before


def _cut_short(arrays: list[str]) -> list[str]:
    return arrays[:1]


def _too_many(arrays: list[str]) -> list[str]:
    return [*arrays, *arrays]


@pytest.mark.parametrize("damage", [_cut_short, _too_many])
def test_another_number_of_residuals_than_of_pieces_is_damage(
    model: Path, damage: Callable[[Iterable[str]], list[str]]
) -> None:
    old = stored(model)
    change(model, scale(0.7, layers="0-1"), policy=ANY)
    as_before_06(model, old)
    path = patch_folder(model, 1) / "receipt.json"
    receipt = json.loads(path.read_text())
    kept = receipt["tensors"][0]["undo"]
    kept["arrays"] = damage(kept["arrays"])
    path.write_text(json.dumps(receipt))
    without_digests(model)
    before = everything(model.parent)
    with pytest.raises(LedgerDamaged):
        revert(model, by="tester")
    assert everything(model.parent) == before


@pytest.mark.parametrize("name", ["undo.safetensors", "undo-00001.safetensors", "receipt.json"])
def test_altered_missing_or_foreign_undo_data_change_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(undo, "_FILE", 1)
    change(model, scale(0.7, layers="0-1"), policy=ANY)
    path = patch_folder(model, 1) / name
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[-1 if name != "receipt.json" else sound.index(b'"frames/')] ^= 0x04
    for damage in (bytes(flipped), sound[: len(sound) // 2], None):
        path.unlink(missing_ok=True)
        if damage is not None:
            path.write_bytes(damage)
        before = everything(model.parent)
        with pytest.raises(StorageError) as caught:
            revert(model, by="tester")
        assert caught.value.exit_status == 7
        assert everything(model.parent) == before
    path.write_bytes(sound)
    revert(model, by="tester")
    assert verify(model).original


def test_a_residual_that_came_back_wrong_stops_the_transaction(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof takes the stage back with the residual as the disk gives it: here every write in turn loses a bit."""
    plan = approved_plan(model, scale(0.7, layers="0-1"), scale(1.01, layers="2"), policy=ANY)
    before = everything(model.parent)
    real, number = calls.write, 0
    while True:
        number += 1
        seen: list[str] = []

        def write(descriptor: int, data: Any, seen: list[str] = seen, at: int = number) -> int:
            name = os.path.basename(os.readlink(f"/dev/fd/{descriptor}"))
            if not name.endswith("-lock"):
                seen.append(name)
                if len(seen) == at:
                    data = bytearray(data)
                    data[len(data) // 2] ^= 0x01
            return real(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(calls, "write", write)
            try:
                apply_plan(plan, model, out=model.parent / "out", policy=ANY, by="tester")
            except StorageError:
                assert everything(model.parent) == before
            else:
                break
    assert len(seen) == number - 1
    assert {"undo.safetensors", "ledger.json"} <= set(seen)
    assert litter(model.parent) == []


@pytest.mark.parametrize("verb", ["apply", "revert"])
@pytest.mark.parametrize("fault", [refuse, interrupt, kill])
def test_a_fault_at_every_call_leaves_the_old_state_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, fault: Callable[[str], None]
) -> None:
    """As the crash sweeps, with residuals in several files and threads at work."""
    monkeypatch.setattr(undo, "_FILE", 1)
    short_pieces(monkeypatch, PIECE, threads=True)
    tensors = {name: ("BF16", random_tensor((ELEMENTS,), seed=seed)) for seed, name in enumerate(NAMES[:2])}
    states: list[Any] = []
    number, count = 0, 1
    while number <= count:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            model = write_checkpoint(Path(folder) / "model", tensors)
            plan = approved_plan(model, scale(0.7, layers="0-1"), policy=ANY)
            if verb == "revert":
                change(model, scale(0.7, layers="0-1"), policy=ANY)
            old = files(model)

            def work(model: Path = model, plan: Plan = plan) -> object:
                if verb == "revert":
                    return revert(model, by="tester")
                return apply_plan(plan, model, out=None, policy=ANY, by="tester")

            with installed(Disk(number, fault)) as disk:
                if fault is kill and number:
                    assert run_forked(work) == -9
                else:
                    with suppress(StorageError, KeyboardInterrupt, Interrupted):
                        work()
            if not number:  # no fault: how many calls there are, and what comes of them
                states, count = [old, files(model)], len(disk.calls)
            assert files(model) in states
            recover(model)
            assert litter(Path(folder)) == []
            assert verify(model).sound
        number += 1
    assert states[0] != states[1]


@pytest.mark.parametrize(("parts", "said"), [(0, "less of it"), (2, "more of it")])
def test_another_number_of_frames_than_of_pieces_is_damage(model: Path, parts: int, said: str) -> None:
    change(model, scale(0.7, layers="0-1"), policy=ANY)
    path = patch_folder(model, 1) / "receipt.json"
    receipt = json.loads(path.read_text())
    kept = receipt["tensors"][0]["undo"]
    kept["parts"] = parts * kept["parts"]
    path.write_text(json.dumps(receipt))
    without_digests(model)
    before = everything(model.parent)
    for low_space in (False, True):
        with pytest.raises(LedgerDamaged, match=said):
            revert(model, by="tester", low_space=low_space)
        assert everything(model.parent) == before


def test_arrays_are_never_called_as_a_tensor_is(tmp_path: Path) -> None:
    names = ("frames/1", "table/0", "replaced/0", "w.weight")
    tensors = {name: ("BF16", random_tensor((ELEMENTS,), seed=seed)) for seed, name in enumerate(names)}
    model = write_checkpoint(tmp_path / "model", tensors)
    before = files(model)
    zero = {"target": {"tensors": ["table/0"]}, "operation": {"kind": "zero"}}
    change(model, scale(1.02, tensors=["frames/1", "replaced/0", "w.weight"]), zero, policy=ANY, card=True)
    revert(model, by="tester")
    assert files(model) == before
