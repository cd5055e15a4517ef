"""The history: what was done, what is in force, and the way back to any state, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from older_ledgers import without_digests
from snapshots import ANY, approved_plan, change, everything, files, litter, scale, small_model, stored

from planner.checkpoint import digest_file, fingerprint_checkpoint, open_checkpoint, tensor_digests
from planner.errors import NothingToRevert, StorageError
from planner.plan import Policy, read_plan
from planner.transaction import Ledger, Receipt, State, apply_plan, patch_folder, read_ledger, revert, verify
from planner.transaction.ledger import ledger_path
from planner.transaction.types import Frames
from planner.transaction.undo.frames import RAW


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


def _ledger(model: Path) -> Ledger:
    ledger = read_ledger(model)
    assert ledger is not None
    return ledger


def _fingerprint(model: Path) -> str:
    return fingerprint_checkpoint(open_checkpoint(model))


def test_every_state_of_the_history_comes_back_bit_for_bit(model: Path, tmp_path: Path) -> None:
    states = [files(model)]
    prints = [_fingerprint(model)]
    edits = (
        [scale(1.5, layers="0-1")],
        [scale(0.7, layers="1-2")],  # overlaps the first: its undo is of the first's result
        [{"target": {"tensors": ["*"]}, "operation": {"kind": "zero"}}],
    )
    for number, edit in enumerate(edits, start=1):
        assert change(model, *edit).patch == number
        states.append(files(model))
        prints.append(_fingerprint(model))
    assert _ledger(model).in_force == (1, 2, 3)

    assert revert(model, to=1, by="tester").in_force == (1,)
    assert files(model) == states[1]
    assert change(model, *edits[1]).patch == 4  # numbers are never used twice
    assert files(model) == states[2]
    assert revert(model, by="tester").in_force == (1,)  # the last one
    assert files(model) == states[1]
    assert revert(model, to=0, by="tester").in_force == ()
    assert files(model) == states[0]
    assert verify(model).original
    assert change(model, *edits[0]).patch == 5
    assert files(model) == states[1]

    ledger = _ledger(model)
    assert [(event.kind, event.patch) for event in ledger.events] == [
        ("applied", 1),
        ("applied", 2),
        ("applied", 3),
        ("reverted", 1),
        ("applied", 4),
        ("reverted", 1),
        ("reverted", 0),
        ("applied", 5),
    ]
    assert [event.fingerprint for event in ledger.events] == [prints[n] for n in (1, 2, 3, 1, 2, 1, 0, 1)]
    assert ledger.serial == 8
    assert ledger.in_force == (5,)
    assert ledger.parent is None
    assert ledger.original.fingerprint == prints[0]
    assert ledger.current.fingerprint == _fingerprint(model)
    # Every record is kept; the undo data of what is undone are not.
    for number in range(1, 6):
        names = {path.name for path in patch_folder(model, number).iterdir()}
        assert names == {"plan.json", "receipt.json"} | ({"undo.safetensors"} if number == 5 else set())
    assert litter(tmp_path) == []


def test_an_output_remembers_what_it_was_made_from(model: Path, tmp_path: Path) -> None:
    change(model, scale(2, layers="0"))
    source = _fingerprint(model)
    change(model, scale(2, layers="1"), out=tmp_path / "out")
    ledger = _ledger(tmp_path / "out")
    assert ledger.parent is not None
    assert (ledger.parent.name, ledger.parent.fingerprint) == ("model", source)
    assert ledger.in_force == (1,)  # a history of its own, which begins with the weights it was made from
    assert ledger.original.fingerprint == source
    revert(tmp_path / "out", to=0, by="tester")
    assert files(tmp_path / "out") == files(model)


@pytest.mark.parametrize("in_place", [False, True], ids=["out", "in-place"])
def test_receipt_and_ledger_say_what_is_on_the_disk(model: Path, tmp_path: Path, in_place: bool) -> None:
    before = tensor_digests(open_checkpoint(model))
    fingerprint = _fingerprint(model)
    policy = Policy(largest_relative_change=9, largest_total_change=9, largest_cumulative_change=9)
    edits = (scale(1.5, layers="0-1"), scale(3, layers="1"))
    plan = approved_plan(model, *edits, id="my-plan", goal="clearer", policy=policy)
    receipt = apply_plan(
        plan,
        model,
        out=None if in_place else tmp_path / "out",
        policy=policy,
        by="tester",
    )
    result = Path(receipt.path)
    after = tensor_digests(open_checkpoint(result))
    folder = patch_folder(result, 1)
    assert Receipt.model_validate_json((folder / "receipt.json").read_text()) == receipt
    assert receipt.in_place is in_place
    assert receipt.fingerprint_before == fingerprint
    assert receipt.fingerprint_after == _fingerprint(result)
    assert receipt.plan == "my-plan"
    assert receipt.plan_digest == digest_file(folder / "plan.json")
    assert read_plan((folder / "plan.json").read_text()) == plan
    assert receipt.undo_bytes == (folder / "undo.safetensors").stat().st_size
    assert {tensor.name for tensor in receipt.tensors} == {name for name in before if before[name] != after[name]}
    for tensor in receipt.tensors:
        assert (tensor.before, tensor.after) == (before[tensor.name], after[tensor.name])
        assert tensor.shard == open_checkpoint(result).tensors[tensor.name].shard
        assert tensor.elements == 128
        assert 0 < tensor.changed_elements <= 128
    assert [tensor.modifications for tensor in receipt.tensors] == [("m01",), ("m01", "m02")]
    assert receipt.tensors[0].relative_change == pytest.approx(0.5, rel=0.01)
    assert receipt.tensors[1].relative_change == pytest.approx(3.5, rel=0.01)
    ledger = _ledger(result)
    (event,) = ledger.events
    assert (event.plan, event.plan_digest, event.goal, event.by) == (
        "my-plan",
        receipt.plan_digest,
        "clearer",
        "tester",
    )
    assert (event.modifications, event.changed_tensors) == (2, 2)
    assert event.changed_elements == sum(tensor.changed_elements for tensor in receipt.tensors)
    assert ledger.current.tensors == after
    assert ledger.original.tensors == before
    for name, state in ledger.current.files.items():
        shard = name.endswith(".safetensors")
        assert state.digest == (_shard_digest(result / name, after) if shard else digest_file(result / name))
        assert state.size == (result / name).stat().st_size


def _shard_digest(path: Path, tensors: dict[str, str]) -> str:
    """As the types say: of the header, length included, and the digests of the tensors, a line each."""
    raw = path.read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    entries = {name: at for name, at in json.loads(raw[8:length]).items() if name != "__metadata__"}
    hasher = blake3(raw[:length])
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        hasher.update(f"{tensors[name]}\n".encode())
    return "shard-blake3:" + hasher.hexdigest()


def test_a_ledger_with_digests_of_whole_shards_is_still_verified(model: Path) -> None:
    """Versions before 0.3 wrote those."""
    change(model, scale(1.5, layers="0"))
    kept = _ledger(model)

    def whole(state: State) -> State:
        files = {
            name: file.model_copy(update={"digest": digest_file(model / name)}) for name, file in state.files.items()
        }
        return state.model_copy(update={"files": files})

    old = kept.model_copy(update={"current": whole(kept.current), "seal": None})
    ledger_path(model).write_bytes(old.model_dump_json().encode())
    assert verify(model).sound
    shard = model / next(name for name in kept.current.files if name.endswith(".safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    found = verify(model)
    assert not found.sound
    assert found.damaged_files == (shard.name,)


def test_undo_data_are_safetensors_that_any_tool_reads(model: Path) -> None:
    """And the receipt says which bytes of them are a tensor's: a frame, here of bytes that nothing else could give."""
    numpy = pytest.importorskip("safetensors.numpy")
    old = stored(model)["model.norm.weight"]
    receipt = change(model, {"target": {"tensors": ["model.norm.weight"]}, "operation": {"kind": "zero"}})
    kept = numpy.load_file(patch_folder(model, 1) / "undo.safetensors")
    undo = receipt.tensors[0].undo
    assert isinstance(undo, Frames)
    assert undo.table is None
    ((array, begin, size),) = undo.parts
    assert (begin, size, list(kept)) == (0, kept[array].size, [array])
    length = int.from_bytes(kept[array][:4].tobytes(), "little")
    assert length + 4 == size <= 4 + 1 + old.size
    assert kept[array][4:].tobytes() == bytes([RAW]) + old.tobytes()


def test_a_model_without_history_has_nothing_to_revert_and_is_sound(model: Path) -> None:
    before = everything(model.parent)
    assert read_ledger(model) is None
    with pytest.raises(NothingToRevert) as caught:
        revert(model, by="tester")
    assert caught.value.exit_status == 2
    found = verify(model)
    assert (found.ledger, found.sound, found.original) == (False, True, None)
    assert found.files == len(files(model))
    assert found.bytes == sum(len(content) for _, content in files(model).values())
    assert everything(model.parent) == before


def test_only_a_patch_in_force_can_be_gone_back_to(model: Path) -> None:
    change(model, scale(2, layers="0"))
    change(model, scale(2, layers="1"))
    before = everything(model.parent)
    for number, said in ((2, "the last one already"), (3, "patch 3 is not in force"), (-1, "patch -1 is not")):
        with pytest.raises(NothingToRevert, match=said):
            revert(model, to=number, by="tester")
    assert everything(model.parent) == before
    revert(model, to=0, by="tester")
    with pytest.raises(NothingToRevert, match="no patch is in force"):
        revert(model, by="tester")


def test_an_undo_that_would_not_give_the_original_is_not_committed(model: Path) -> None:
    """The ledger is the measure, not the undo data: here both undo data and weights are sound, but of other patches."""

    def noise(seed: int) -> dict[str, Any]:
        operation = {"kind": "noise", "std": 10, "seed": seed}
        return {"target": {"tensors": ["model.norm.weight"]}, "operation": operation}

    change(model, noise(1), policy=ANY)
    kept = (patch_folder(model, 1) / "undo.safetensors").read_bytes()
    change(model, noise(2), policy=ANY)
    (patch_folder(model, 2) / "undo.safetensors").write_bytes(kept)
    without_digests(model)
    before = everything(model.parent)
    with pytest.raises(StorageError, match="not the original ones"):
        revert(model, to=1, by="tester")
    assert everything(model.parent) == before
    revert(model, to=0, by="tester")
    assert verify(model).original


def test_the_ledger_is_not_part_of_the_model(model: Path, tmp_path: Path) -> None:
    """Neither the fingerprint nor a copy made with --out takes it over."""
    first = _fingerprint(model)
    change(model, scale(2, layers="0"))
    revert(model, by="tester")
    assert _fingerprint(model) == first
    change(model, scale(2, layers="0"), out=tmp_path / "out")
    assert len(_ledger(tmp_path / "out").events) == 1
