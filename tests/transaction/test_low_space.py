"""Changing a checkpoint in its place: the bytes of the usual way, in bounded room, and never under somebody's eyes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint
from faults import Disk, installed, kill, run_forked
from safetensors.numpy import save_file
from small_disks import AS_ROOT, fill, tmpfs
from snapshots import ANY, attributes, change, everything, files, litter, scale, short_pieces, small_model
from test_additions import New

from planner.checkpoint import fingerprint_checkpoint, open_checkpoint
from planner.errors import FileInUse, LedgerDamaged, NoSpace, RecoveryBlocked, StorageError, UnsafeInPlace
from planner.profile import profile_of, store
from planner.transaction import checked_plan, recover, revert, verify
from planner.transaction.edits import Edits
from planner.transaction.in_place import low_space

NAMES = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)]
ROWS, COLUMNS = 96, 64


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tensors of several pieces and an odd rest, of several chunks."""
    short_pieces(monkeypatch, 1000 * 8)
    monkeypatch.setattr(low_space, "CHUNK", 2)
    tensors: dict[str, tuple[str, Any]] = {
        name: (dtype, random_tensor((ROWS, COLUMNS), dtype=dtype, seed=seed))
        for seed, (name, dtype) in enumerate(zip(NAMES, ("BF16", "F32", "F16"), strict=True))
    }
    return write_checkpoint(tmp_path / "model", tensors, shards=2)


def _arrays(folder: Path) -> None:
    """What operations read."""
    rng = np.random.default_rng(3)
    save_file(
        {
            "in": rng.standard_normal(COLUMNS).astype(np.float32),
            "out": rng.standard_normal(ROWS).astype(np.float32),
            "left": rng.standard_normal((ROWS, 2)).astype(np.float32),
            "right": rng.standard_normal((2, COLUMNS)).astype(np.float32),
        },
        folder / "arrays.safetensors",
    )


def _array(name: str) -> dict[str, str]:
    return {"file": "arrays.safetensors", "array": name}


OPERATIONS: list[dict[str, Any]] = [
    {"kind": "scale", "factor": 1.02},
    {"kind": "scale", "factor": {**_array("out"), "axis": "rows"}},
    {"kind": "shift", "offset": 0.01},
    {"kind": "clamp", "minimum": -0.05, "maximum": 0.05},
    {"kind": "soft_threshold", "threshold": 0.02},
    {"kind": "zero"},
    {"kind": "noise", "std": 0.01, "seed": 7},
    {"kind": "normalize", "norm": 1.0, "per": "rows"},
    {"kind": "project_out", "direction": _array("in"), "strength": 1.0, "axis": "columns"},
    {"kind": "rank_one", "u": _array("out"), "v": _array("in"), "strength": 0.01},
    {"kind": "rank_reduce", "rank": 8},
    {"kind": "spectral_scale", "first": 1, "last": 3, "factor": 0.5},
    {"kind": "spectral_clamp", "maximum": 0.5},
    {"kind": "low_rank_add", "a": _array("right"), "b": _array("left"), "weight": 0.01},
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation["kind"])
def test_the_bytes_are_those_of_the_usual_way(model: Path, tmp_path: Path, operation: dict[str, Any]) -> None:
    _arrays(tmp_path)
    before = files(model)
    edit = {"target": {"tensors": NAMES}, "operation": operation}
    other = change(model, edit, out=tmp_path / "out", policy=ANY, folder=tmp_path, card=False)
    told: list[tuple[str, int, int]] = []
    receipt = change(model, edit, policy=ANY, folder=tmp_path, low_space=True, progress=lambda *step: told.append(step))
    assert {"writing", "proving", "overwriting", "verifying"} <= {step for step, _, _ in told}
    assert all(done <= total for _, done, total in told)
    assert files(model) == files(tmp_path / "out") != before
    assert receipt.tensors == other.tensors
    assert receipt.fingerprint_after == other.fingerprint_after == fingerprint_checkpoint(open_checkpoint(model))
    assert verify(model).sound
    revert(model, by="tester", low_space=True)
    assert files(model) == before
    assert verify(model).original
    assert litter(tmp_path) == []


def test_both_ways_can_follow_each_other(model: Path) -> None:
    """Any state of the history comes back, whichever way it was made and is gone back to."""
    states = [files(model)]
    edits = [
        scale(1.1, tensors=NAMES),
        {"target": {"tensors": NAMES[:2]}, "operation": {"kind": "rank_reduce", "rank": 9}},
    ]
    edits += [
        scale(0.9, tensors=NAMES[1:]),
        {"target": {"tensors": NAMES}, "operation": {"kind": "shift", "offset": 0.1}},
    ]
    for number, edit in enumerate(edits):
        change(model, edit, policy=ANY, low_space=number % 2 == 1)
        states.append(files(model))
    for to, low in ((3, False), (1, True)):
        revert(model, to=to, by="tester", low_space=low)
        assert files(model) == states[to]
        assert verify(model).sound
    change(model, edits[1], policy=ANY, low_space=True)
    assert files(model) == states[2]
    change(model, edits[2], policy=ANY)
    assert files(model) == states[3]
    revert(model, to=0, by="tester", low_space=True)
    assert files(model) == states[0]
    assert verify(model).original


@pytest.mark.parametrize("low", [False, True], ids=["two copies", "low space"])
def test_owners_modes_attributes_and_empty_folders_stay(tmp_path: Path, low: bool) -> None:
    model = small_model(tmp_path / "model")
    if os.geteuid() == 0:
        for number, path in enumerate(sorted([model, *model.rglob("*")])):
            os.chown(path, 1000 + number, 2000 + number)
    model.chmod(0o2751)
    (model / "empty").chmod(0o1711)
    (model / "tokenizer.json").chmod(0o600)
    next(model.glob("*.safetensors")).chmod(0o444)
    try:
        for path in (model, model / "empty", model / "sub" / "notes.txt", next(model.glob("*.safetensors"))):
            os.setxattr(path, "user.note", path.name.encode())
    except OSError:
        pass  # a file system without them: the rest counts
    before = attributes(model)
    change(model, scale(1.5, layers="0-3"), low_space=low)
    assert attributes(model) == before
    revert(model, by="tester", low_space=low)
    assert attributes(model) == before


def test_a_plan_that_adds_tensors_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, added = checked_plan.edits_of, New("a.bias", random_tensor((7,)), like=NAMES[0])
    monkeypatch.setattr(checked_plan, "edits_of", lambda *given: Edits(real(*given).tensors, (added,), None))
    before = everything(model.parent)
    with pytest.raises(UnsafeInPlace, match="adds or removes tensors"):
        change(model, scale(1.5, tensors=NAMES), policy=ANY, low_space=True)
    assert everything(model.parent) == before
    change(model, scale(1.5, tensors=NAMES), policy=ANY)
    before = everything(model.parent)
    with pytest.raises(UnsafeInPlace, match="adds or removes tensors"):
        revert(model, by="tester", low_space=True)
    assert everything(model.parent) == before


_HOLD = """
import mmap, os, sys, time
file = os.open(sys.argv[1], os.O_RDONLY)
if sys.argv[2] == "mapped":
    kept = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    os.close(file)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/map_files").exists(), reason="there is no /proc to ask")
@pytest.mark.parametrize("how", ["open", "mapped"])
def test_nothing_changes_under_somebody_who_has_a_shard_open(model: Path, how: str) -> None:
    shard = sorted(model.glob("*.safetensors"))[1]
    commands: dict[str, Callable[[], object]] = {
        "apply": lambda: change(model, scale(1.5, tensors=NAMES), policy=ANY, low_space=True),
        "revert": lambda: revert(model, by="tester", low_space=True),
    }
    for verb in ("apply", "revert"):
        if verb == "revert":
            commands["apply"]()
        before = files(model)
        command = [sys.executable, "-c", _HOLD, str(shard), how]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout
            assert reader.stdout.readline() == "ready\n"
            with pytest.raises(FileInUse, match=rf"process {reader.pid} .*{shard.name}") as caught:
                commands[verb]()
            assert "--out DIR" in str(caught.value.hint)
            assert files(model) == before
            assert litter(model.parent) == []
            reader.communicate("")
        assert verify(model).sound
    revert(model, by="tester", low_space=True)
    assert verify(model).original


def _killed_half_way(model: Path) -> None:
    def work() -> object:
        return change(model, scale(1.5, tensors=NAMES), policy=ANY, low_space=True)

    with installed(Disk()) as disk, pytest.MonkeyPatch.context() as patch:
        patch.setattr(low_space, "refuse_in_use", lambda shards: None)
        seen = [0]

        def at_a_piece(call: str) -> None:
            seen[0] += call == "pwrite"
            if seen[0] == 6:
                kill(call)

        disk.at, disk.fault, disk.for_ever = 1, at_a_piece, True
        assert run_forked(work) == -9
    assert not model.exists()


def test_a_foreign_folder_under_the_name_is_left_alone(model: Path) -> None:
    before = files(model)
    _killed_half_way(model)
    foreign = small_model(model)
    kept = everything(foreign)
    for command in (recover, lambda path: change(path, scale(1.5, layers="0"))):
        with pytest.raises(RecoveryBlocked) as caught:
            command(model)
        assert "move that folder away" in str(caught.value.hint)
        assert everything(foreign) == kept
    model.rename(model.parent / "elsewhere")
    assert len(recover(model)) == 3
    assert files(model) == before
    assert everything(model.parent / "elsewhere") == kept
    assert litter(model.parent) == []


@pytest.mark.parametrize("name", ["journal.json", "pieces"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_journal_is_said_and_loses_nothing(model: Path, name: str, damage: str) -> None:
    before = files(model)
    _killed_half_way(model)
    path = low_space.journal_folder(model) / name
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 0x80
    path.unlink()
    if damage != "gone":
        path.write_bytes(flipped if damage == "flipped" else sound[: len(sound) // 2])
    lock = model.parent / f".{model.name}.planner-lock"
    lock.unlink()  # the one of the killed process, which the next command takes over
    kept = everything(model.parent)
    with pytest.raises(LedgerDamaged, match="journal") as caught:
        recover(model)
    assert caught.value.exit_status == StorageError.exit_status
    assert everything(model.parent) == kept
    path.write_bytes(sound)
    recover(model)
    assert files(model) == before
    assert litter(model.parent) == []


@AS_ROOT
def test_a_model_that_does_not_fit_twice_is_changed_and_given_back_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """27 MiB of a model on a disk of 50, which is never asked for more than the undo data and two chunks."""
    monkeypatch.setattr(store, "SETTLED_NS", -(10**18))
    with tmpfs(tmp_path / "disk", 50 * 2**20) as disk:
        tensors = {name: ("BF16", random_tensor((2048, 2300), seed=seed)) for seed, name in enumerate(NAMES)}
        model = write_checkpoint(disk / "model", tensors)
        before = files(model)
        profile_of(open_checkpoint(model))  # its histograms say how large the undo data will be
        with pytest.raises(NoSpace) as caught:
            change(model, scale(1.02, tensors=NAMES))
        assert "--low-space" in str(caught.value.hint)
        assert files(model) == before
        assert litter(disk) == []
        start, least = os.statvfs(disk).f_bfree, [2**60]

        def look(call: str) -> None:
            least.append(os.statvfs(disk).f_bfree)

        with installed(Disk(1, look, for_ever=True)):
            receipt = change(model, scale(1.02, tensors=NAMES), low_space=True)
        peak = 4096 * (start - min(least))
        chunk = low_space.CHUNK * 2**19
        assert peak < 2 * chunk + receipt.undo_bytes + 2 * 2**20  # the slot, and the room that a revert may want
        assert receipt.undo_bytes < 0.02 * receipt.changed_bytes
        fill(disk)
        assert os.statvfs(disk).f_bavail == 0
        with pytest.raises(NoSpace) as caught:
            revert(model, by="tester")
        assert "--low-space" in str(caught.value.hint)
        revert(model, by="tester", low_space=True)
        assert files(model) == before
        assert verify(model).original
