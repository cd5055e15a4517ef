"""What apply stores: the planned bits, the same that torch would store, and not one other bit."""

from __future__ import annotations

import json
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import MEMORY, approved_plan, change, everything, files, litter, scale, small_model, stored

from planner.dtypes import FLOATS
from planner.errors import PlanRefused
from planner.plan import Policy, decide
from planner.transaction import apply_plan, read_ledger, revert, verify

torch = pytest.importorskip("torch")

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
ANY = Policy(largest_relative_change=1e30, largest_total_change=1e30)


def _as_torch(raw: np.ndarray[Any, Any], dtype: str) -> Any:
    return torch.frombuffer(bytearray(raw.tobytes()), dtype=TORCH[dtype])


def _scaled(raw: np.ndarray[Any, Any], dtype: str, factor: float) -> bytes:
    """What the usual script would store: to float, times the factor, back."""
    weight = _as_torch(raw, dtype)
    working = weight if dtype == "F64" else weight.float()
    return bytes((working * factor).to(TORCH[dtype]).view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("in_place", [False, True], ids=["out", "in-place"])
def test_scaled_weights_are_what_torch_would_store(tmp_path: Path, dtype: str, shards: int, in_place: bool) -> None:
    model = small_model(tmp_path / "model", dtype=dtype, shards=shards)
    before, old_files = stored(model), files(model)
    receipt = change(model, scale(1.02, layers="1,3"), out=None if in_place else tmp_path / "out")
    result = Path(receipt.path)
    after = stored(result)
    changed = {f"model.layers.{layer}.mlp.up_proj.weight" for layer in (1, 3)}
    for name, raw in before.items():
        if name in changed:
            assert after[name].tobytes() == _scaled(raw, dtype, 1.02)
            assert after[name].tobytes() != raw.tobytes()
        else:
            assert after[name].tobytes() == raw.tobytes()
    assert {tensor.name for tensor in receipt.tensors} == changed
    # File by file: the same names, modes and bytes, but for the data of shards that hold a changed tensor.
    new_files = files(result)
    assert new_files.keys() == old_files.keys() | (set() if in_place else {"README.md"})  # the card of a new folder
    for name, (mode, content) in old_files.items():
        assert new_files[name][0] == mode
        if name in {tensor.shard for tensor in receipt.tensors}:
            header = 8 + struct.unpack("<Q", content[:8])[0]
            assert new_files[name][1][:header] == content[:header]
            assert len(new_files[name][1]) == len(content)
        else:
            assert new_files[name][1] == content
    assert (result / "empty").is_dir()
    if not in_place:
        assert files(model) == old_files
        assert not (model / ".planner").exists()
    assert litter(tmp_path) == []


def test_a_header_that_no_writer_of_ours_would_make_survives(tmp_path: Path) -> None:
    """Unusual key order, metadata, escapes and padding are copied as bytes."""
    model = tmp_path / "model"
    model.mkdir()
    data = random_tensor((4, 4)).tobytes()
    fields = {
        "z.weight": {"shape": [4, 4], "data_offsets": [32, 64], "dtype": "BF16"},
        "__metadata__": {"note": "Zürich", "format": "pt"},
        "a.weight": {"dtype": "BF16", "data_offsets": [0, 32], "shape": [4, 4]},
    }
    text = json.dumps(fields, indent=2).encode() + b" " * 21
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data + data)
    change(model, scale(2, tensors=["z.weight"]), out=tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written[: 8 + len(text)] == struct.pack("<Q", len(text)) + text
    assert written[8 + len(text) :] == data + _scaled(np.frombuffer(data, np.uint8), "BF16", 2)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_several_modifications_of_one_tensor_are_rounded_once(tmp_path: Path, dtype: str) -> None:
    model = small_model(tmp_path / "model", dtype=dtype)
    name = "model.layers.0.mlp.up_proj.weight"
    raw = stored(model)[name]
    offset = {"target": {"layers": "0"}, "operation": {"kind": "shift", "offset": 0.003}}
    bound = {"target": {"roles": ["up_proj"], "layers": "0"}, "operation": {"kind": "clamp", "maximum": 0.05}}
    change(model, scale(1.01, layers="0"), offset, scale(1.003, tensors=[name]), bound, out=tmp_path / "out")
    weight = _as_torch(raw, dtype)
    weight = weight if dtype == "F64" else weight.float()
    once = ((weight * 1.01 + 0.003) * 1.003).clamp(max=0.05).to(TORCH[dtype])
    assert stored(tmp_path / "out")[name].tobytes() == once.view(torch.uint8).numpy().tobytes()
    if dtype in {"BF16", "F16"}:
        twice = (weight * 1.01).to(TORCH[dtype]).float()
        twice = (twice + 0.003).to(TORCH[dtype]).float()
        twice = (twice * 1.003).to(TORCH[dtype]).float().clamp(max=0.05).to(TORCH[dtype])
        assert not torch.equal(once, twice)  # so that the test can tell the two apart


def test_a_tensor_of_several_chunks_is_changed_throughout(tmp_path: Path) -> None:
    elements = 8 * 2**20 // 2 + 5  # more than one chunk of 16-bit elements, and not a whole number of them
    pattern = random_tensor((4096,))
    model = write_checkpoint(tmp_path / "model", {"big.weight": ("BF16", np.resize(pattern, elements))})
    change(model, scale(1.5, tensors=["big.weight"]))
    assert stored(model)["big.weight"].tobytes() == _scaled(np.resize(pattern, elements).view(np.uint8), "BF16", 1.5)
    assert verify(model).sound


def test_scalars_empty_tensors_and_nan_payloads_survive(tmp_path: Path) -> None:
    odd = np.array([0x7FC1, 0xFF80, 0x8000, 0xFFFF, 0x3F80], dtype="<u2")  # NaN, -inf, -0, another NaN, 1
    tensors = {
        "odd.weight": ("BF16", odd),
        "scalar.weight": ("F32", np.array(0x3F800000, dtype="<u4")),
        "none.weight": ("F32", np.zeros((0, 4), dtype="<u4")),
        "steps": ("I64", np.array([7], dtype="<i8")),
    }
    model = write_checkpoint(tmp_path / "model", tensors)
    change(model, scale(2, tensors=["odd.weight", "scalar.weight", "none.weight"]))
    after = stored(model)
    assert after["odd.weight"].view("<u2").tolist() == [0x7FC1, 0xFF80, 0x8000, 0xFFFF, 0x4000]
    assert after["scalar.weight"].view("<f4").tolist() == [2.0]
    assert after["steps"].view("<i8").tolist() == [7]
    revert(model, by="tester")
    assert stored(model)["odd.weight"].tobytes() == odd.tobytes()


def test_the_result_loads_with_transformers_and_holds_the_planned_weights(tmp_path: Path, tiny_model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    receipt = change(tiny_model, scale(1.1, roles=["down_proj"], layers="2-4"), out=tmp_path / "out")
    assert len(receipt.tensors) == 3
    load = transformers.AutoModelForCausalLM.from_pretrained
    old = load(tiny_model, dtype=torch.bfloat16)
    new = load(tmp_path / "out", dtype=torch.bfloat16)
    state = new.state_dict()
    for name, weight in old.state_dict().items():
        planned = ".down_proj." in name and name.split(".")[2] in {"2", "3", "4"}
        assert torch.equal(state[name], (weight.float() * 1.1).bfloat16() if planned else weight), name
    assert new.lm_head.weight.data_ptr() == new.model.embed_tokens.weight.data_ptr()  # still tied
    transformers.AutoTokenizer.from_pretrained(tmp_path / "out")


def test_rejected_modifications_are_left_out(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    plan = approved_plan(model, scale(2, layers="0"), scale(2, layers="1"), policy=ANY)
    plan = decide(plan, ["m01"], "rejected", reviewer="tester", comment="not this one")
    before = stored(model)
    receipt = apply_plan(plan, model, out=tmp_path / "out", policy=ANY, by="tester")
    after = stored(tmp_path / "out")
    changed = [name for name in before if before[name].tobytes() != after[name].tobytes()]
    assert changed == ["model.layers.1.mlp.up_proj.weight"]
    assert receipt.modifications == ("m02",)
    assert receipt.rejected == ("m01",)


def test_an_empty_output_folder_is_taken(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    (tmp_path / "out").mkdir()
    change(model, scale(2, layers="0"), out=tmp_path / "out")
    assert verify(tmp_path / "out").sound
    assert litter(tmp_path) == []


def test_a_hub_snapshot_is_copied_with_the_bytes_its_links_lead_to(tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    real = small_model(tmp_path / "real")
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in real.iterdir() if p.is_file())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    old = everything(tmp_path / "models--org--name")
    receipt = change(snapshot, scale(2, layers="0"), out=tmp_path / "out")
    assert everything(tmp_path / "models--org--name") == old
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert verify(tmp_path / "out").sound
    ledger = read_ledger(tmp_path / "out")
    assert ledger is not None
    assert ledger.parent is not None
    assert ledger.parent.name == "org/name"
    assert receipt.path == str(tmp_path / "out")


def test_progress_is_told_for_every_step_up_to_the_end(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    told: list[tuple[str, int, int]] = []
    change(model, scale(2, layers="0"), progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(step for step, _, _ in told)) == ["hashing", "writing", "verifying"]
    for name in ("hashing", "writing", "verifying"):
        done = [count for step, count, _ in told if step == name]
        assert done == sorted(done)
        assert done[-1] == told[0][2]


_FACTORS = st.floats(-4, 4, allow_nan=False, width=16).filter(lambda factor: abs(factor) > 0.01)
_OPERATIONS = st.one_of(
    _FACTORS.map(lambda factor: {"kind": "scale", "factor": factor}),
    st.floats(-0.5, 0.5, width=16).map(lambda offset: {"kind": "shift", "offset": offset}),
    st.floats(0, 0.125, width=16).map(lambda bound: {"kind": "clamp", "minimum": -bound, "maximum": bound}),
    st.just({"kind": "zero"}),
)
_MODES = st.sampled_from([0o600, 0o640, 0o644, 0o444, 0o755])


@st.composite
def _worlds(draw: st.DrawFn) -> tuple[dict[str, tuple[str, Any]], int, list[int], list[dict[str, Any]]]:
    """Tensors, number of shards, modes of the files, modifications."""
    count = draw(st.integers(1, 4))
    tensors = {}
    for layer in range(count):
        dtype = draw(st.sampled_from(sorted(FLOATS)))
        shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
        tensors[f"model.layers.{layer}.w.weight"] = (dtype, random_tensor(shape, dtype=dtype, seed=layer))
    layers = st.lists(st.integers(0, count - 1), min_size=1, max_size=3, unique=True)
    edits = draw(
        st.lists(
            st.builds(
                lambda chosen, operation: {
                    "target": {"layers": ",".join(map(str, chosen))},
                    "operation": operation,
                },
                layers,
                _OPERATIONS,
            ),
            min_size=1,
            max_size=4,
        )
    )
    modes = draw(st.lists(_MODES, min_size=6, max_size=6))
    return tensors, draw(st.integers(1, count)), modes, edits


@given(_worlds())
@settings(max_examples=60, deadline=None)
def test_whatever_the_plan_taking_it_back_restores_every_byte_and_mode(
    world: tuple[dict[str, tuple[str, Any]], int, list[int], list[dict[str, Any]]],
) -> None:
    tensors, shards, modes, edits = world
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        model, out = Path(folder) / "model", Path(folder) / "out"
        write_checkpoint(model, tensors, shards=shards)
        for path, mode in zip(sorted(model.iterdir()), modes, strict=False):
            path.chmod(mode)
        original = files(model)
        with suppress(PlanRefused):  # something added to a tensor of zeros is a change without bound
            change(model, *edits, out=out, policy=ANY, allow_void=True)
            assert verify(out).sound
            revert(out, to=0, by="tester")
            assert files(out) == original
            assert verify(out).original
        assert files(model) == original
        states = [original]
        for edit in edits:
            with suppress(PlanRefused):
                change(model, edit, policy=ANY, allow_void=True)
                states.append(files(model))
        for patch in range(len(states) - 2, -1, -1):
            revert(model, to=patch, by="tester")
            assert files(model) == states[patch]
        assert litter(Path(folder)) == []
