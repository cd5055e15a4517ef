"""Undo data that are small: what several patterns became the same, and nothing else; and the way back through them."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint
from faults import Disk, installed, interrupt, kill, refuse, run_forked
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import MEMORY, approved_plan, change, everything, files, litter, scale

from planner import fsio
from planner.errors import LedgerDamaged, StorageError
from planner.plan import Plan, Policy
from planner.transaction import (
    Receipt,
    apply_plan,
    patch_folder,
    proof,
    recover,
    residuals,
    revert,
    undo,
    verify,
    writing,
)
from planner.transaction.residuals import Coding, pack_table, unpack_table

ANY = Policy(largest_relative_change=1e30, largest_total_change=1e30)
NAMES = [f"model.layers.{layer}.w.weight" for layer in range(4)]
ELEMENTS = 20_000  # 40 KB: enough for the loops in machine code, and for a residual


@pytest.fixture(params=[False, True], ids=["by the caller", "in threads"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards; pieces so short that a tensor has several, and an odd rest."""
    monkeypatch.setattr(writing, "PIECE", 4096 * 3)
    monkeypatch.setattr(proof, "PIECE", 4096 * 3)
    monkeypatch.setattr(undo, "PIECE", 4096 * 3)
    monkeypatch.setattr(residuals, "PIECE", 4096 * 3)
    monkeypatch.setattr("planner.transaction.way_back.PIECE", 4096 * 3)
    if request.param:
        monkeypatch.setattr(writing, "WORTH_THREADS", 0)
        monkeypatch.setattr(proof, "WORTH_THREADS", 0)
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
    coded = [tensor for tensor in receipt.tensors if tensor.undo]
    assert [tensor.name for tensor in coded] == [NAMES[0], NAMES[1], NAMES[3]]  # F32 has no table
    kept = sizes(patch_folder(model, 1))
    assert receipt.undo_bytes == sum(size for name, size in kept.items() if name.startswith("undo"))
    assert kept["undo.safetensors"] < ELEMENTS * 4 + 4096  # the F32 tensor, and tables of a few hundred bytes
    assert 0 < kept["undo-00001.safetensors"] < 3 * ELEMENTS * 2 * 0.02  # measured: 0.14 % of the bytes of bf16
    assert len({tensor.undo.table for tensor in coded if tensor.undo}) == 2  # one a dtype
    assert verify(model).sound
    revert(model, by="tester")
    assert files(model) == before
    assert sizes(patch_folder(model, 1)).keys() == {"plan.json", "receipt.json"}


def sizes(folder: Path) -> dict[str, int]:
    """Size of every file of a patch."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_what_destroys_everything_keeps_the_bytes_themselves(model: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    before = files(model)
    receipt = change(model, {"target": {"tensors": [NAMES[1]]}, "operation": {"kind": "zero"}}, policy=ANY)
    assert receipt.tensors[0].undo is None
    kept = numpy.load_file(patch_folder(model, 1) / "undo.safetensors")
    assert list(kept) == [NAMES[1]]
    assert sizes(patch_folder(model, 1)).keys() == {"plan.json", "receipt.json", "undo.safetensors"}
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


def test_undo_data_of_an_earlier_version_still_undo(model: Path) -> None:
    """Their receipts know neither `undo` nor `files`; every tensor is there as it was."""
    before = files(model)
    change(model, {"target": {"layers": "0,2"}, "operation": {"kind": "zero"}}, policy=ANY)
    path = patch_folder(model, 1) / "receipt.json"
    receipt = json.loads(path.read_text())
    assert receipt.pop("files") == []
    assert [tensor.pop("undo") for tensor in receipt["tensors"]] == [None, None]
    path.write_text(json.dumps(receipt))
    change(model, scale(1.5, layers="1-3"), policy=ANY)
    revert(model, to=0, by="tester")
    assert files(model) == before


@pytest.mark.parametrize("name", ["undo.safetensors", "undo-00001.safetensors", "receipt.json"])
def test_altered_missing_or_foreign_undo_data_change_nothing(model: Path, name: str) -> None:
    change(model, scale(0.7, layers="0-1"), policy=ANY)
    path = patch_folder(model, 1) / name
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[-1 if name != "receipt.json" else sound.index(b'"undo/')] ^= 0x04
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
    plan = approved_plan(model, scale(0.7, layers="0-1"), scale(1.01, layers="2"))
    before = everything(model.parent)
    real, number = os.write, 0
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
            patch.setattr(fsio.os, "write", write)
            try:
                apply_plan(plan, model, out=model.parent / "out", policy=ANY, by="tester")
            except StorageError:
                assert everything(model.parent) == before
            else:
                break
    assert len(seen) == number - 1
    assert {"undo-00001.safetensors", "undo.safetensors", "ledger.json"} <= set(seen)
    assert litter(model.parent) == []


@pytest.mark.parametrize("verb", ["apply", "revert"])
@pytest.mark.parametrize("fault", [refuse, interrupt, kill])
def test_a_fault_at_every_call_leaves_the_old_state_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, fault: Callable[[str], None]
) -> None:
    """As the crash sweeps, with residuals in several files and threads at work."""
    monkeypatch.setattr(undo, "_FILE", 1)
    monkeypatch.setattr(writing, "WORTH_THREADS", 0)
    monkeypatch.setattr(proof, "WORTH_THREADS", 0)
    tensors = {name: ("BF16", random_tensor((ELEMENTS,), seed=seed)) for seed, name in enumerate(NAMES[:2])}
    states: list[Any] = []
    number, calls = 0, 1
    while number <= calls:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            model = write_checkpoint(Path(folder) / "model", tensors)
            plan = approved_plan(model, scale(0.7, layers="0-1"))
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
                    with suppress(StorageError, KeyboardInterrupt):
                        work()
            if not number:  # no fault: how many calls there are, and what comes of them
                states, calls = [old, files(model)], len(disk.calls)
            assert files(model) in states
            recover(model)
            assert litter(Path(folder)) == []
            assert verify(model).sound
        number += 1
    assert states[0] != states[1]


def test_more_residual_than_tensor_is_damage(model: Path) -> None:
    change(model, scale(0.7, layers="0-1"), policy=ANY)
    path = patch_folder(model, 1) / "receipt.json"
    receipt = json.loads(path.read_text())
    first, second = (tensor["undo"] for tensor in receipt["tensors"])
    first["arrays"] = first["arrays"] + second["arrays"]
    path.write_text(json.dumps(receipt))
    with pytest.raises(LedgerDamaged, match="more of a residual"):
        revert(model, by="tester")


def test_arrays_are_never_called_as_a_tensor_is(tmp_path: Path) -> None:
    names = ("residual/0", "undo/table/0", "_undo/0", "w.weight")
    tensors = {name: ("BF16", random_tensor((ELEMENTS,), seed=seed)) for seed, name in enumerate(names)}
    model = write_checkpoint(tmp_path / "model", tensors)
    before = files(model)
    zero = {"target": {"tensors": ["undo/table/0"]}, "operation": {"kind": "zero"}}
    change(model, scale(1.02, tensors=["residual/0", "_undo/0", "w.weight"]), zero, policy=ANY)
    revert(model, by="tester")
    assert files(model) == before
