"""Tensors that are added and a configuration that changes: read by the official tools, and taken back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint
from faults import Disk, installed, interrupt, refuse
from snapshots import approved_plan, change, files, litter, scale

from planner.checkpoint import fingerprint_checkpoint, open_checkpoint
from planner.errors import Interrupted, StorageError, UsageError
from planner.plan import Policy
from planner.transaction import Receipt, apply_plan, checked_plan, read_ledger, revert, verify
from planner.transaction.edits import Edits

ANY = Policy(largest_relative_change=1e30, largest_total_change=1e30)
CONFIG = b'{"model_type": "test", "attention_bias": true}\n'


@dataclass(frozen=True)
class New:
    """A tensor that is not there yet."""

    name: str
    array: np.ndarray[Any, Any]
    dtype: str = "BF16"
    like: str = "model.layers.0.w.weight"
    modifications: tuple[str, ...] = ("m01",)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.array.shape

    def content(self) -> Iterator[bytes]:
        """In two pieces."""
        raw = self.array.tobytes()
        yield raw[: len(raw) // 2]
        yield raw[len(raw) // 2 :]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return _model(tmp_path / "model", 2)


def _model(folder: Path, shards: int) -> Path:
    tensors = {f"model.layers.{layer}.w.weight": ("BF16", random_tensor((7, 5), seed=layer)) for layer in range(4)}
    return write_checkpoint(folder, tensors, shards=shards)


@pytest.fixture
def with_more(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets every plan that is applied add tensors, or change config.json, beside what it says."""
    real = checked_plan.edits_of

    def more(*additions: New, config: bytes | None = None) -> None:
        def edits(*arguments: Any) -> Edits:
            found = real(*arguments)
            return Edits(found.tensors, additions, config)

        monkeypatch.setattr(checked_plan, "edits_of", edits)

    return more


BIASES = (
    New("model.layers.0.w.bias", random_tensor((7,), seed=9)),
    New("model.layers.0.wide", random_tensor((3,), dtype="F32", seed=8), dtype="F32"),
    New("model.layers.3.w.bias", random_tensor((7,), seed=7), like="model.layers.3.w.weight"),
    New("empty", random_tensor((0, 4))),
)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("in_place", [False, True], ids=["out", "in-place"])
def test_added_tensors_are_there_and_go_away_again(
    tmp_path: Path, with_more: Callable[..., None], shards: int, in_place: bool
) -> None:
    safetensors = pytest.importorskip("safetensors")
    model = _model(tmp_path / "model", shards)
    before, old = files(model), open_checkpoint(model)
    with_more(*BIASES, config=CONFIG)
    receipt = change(model, scale(2, layers="1"), out=None if in_place else tmp_path / "out", policy=ANY)
    result = Path(receipt.path)
    new = open_checkpoint(result)
    assert new.warnings == ()
    assert new.config_bytes == CONFIG
    assert set(new.tensors) == set(old.tensors) | {bias.name for bias in BIASES}
    for shard in old.shards:  # what was there stands where it stood, and the metadata stay
        begins = {entry.name: entry.begin - shard.header.data_begin for entry in shard.header.entries}
        header = new.header(shard.name)
        assert {e.name: e.begin - header.data_begin for e in header.entries if e.name in begins} == begins
        assert [e.name for e in header.entries][: len(begins)] == list(begins)
        assert header.metadata == shard.header.metadata
        assert header.data_begin % 8 == 0
    for bias in BIASES:
        shard = new.tensors[bias.name].shard
        assert shard == old.tensors[bias.like].shard
        assert b"".join(new.chunks(new.tensors[bias.name])) == bias.array.tobytes()
        with safetensors.safe_open(result / shard, "np") as file:
            assert list(file.get_slice(bias.name).get_shape()) == list(bias.shape)
    if shards > 1:
        index = json.loads((result / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: tensor.shard for name, tensor in new.tensors.items()}
    by_name = {tensor.name: tensor for tensor in receipt.tensors}
    assert by_name[BIASES[0].name].before is None
    assert by_name[BIASES[0].name].elements == by_name[BIASES[0].name].changed_elements == 7
    assert {(file.name, file.part) for file in receipt.files} >= {("config.json", "file")}
    assert receipt.fingerprint_after == fingerprint_checkpoint(new) != receipt.fingerprint_before
    ledger = read_ledger(result)
    assert ledger is not None
    assert ledger.current.tensors.keys() == new.tensors.keys()
    assert verify(result).sound
    # A later patch on an added tensor is taken back with it.
    with_more()
    change(result, scale(2, tensors=[BIASES[0].name]), scale(0.5, layers="1"), policy=ANY)
    revert(result, to=1, by="tester")
    assert open_checkpoint(result).config_bytes == CONFIG
    change(result, scale(2, tensors=[BIASES[0].name]), policy=ANY)
    revert(result, to=0, by="tester")
    assert files(result) == before
    assert verify(result).original
    assert files(model) == before


def test_a_total_size_follows_and_other_fields_stay(model: Path, with_more: Callable[..., None]) -> None:
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    size = open_checkpoint(model).nbytes
    path.write_text(json.dumps({"note": "Zürich", **index, "metadata": {"total_size": size, "total_parameters": 1}}))
    before = files(model)
    with_more(BIASES[0])
    change(model, scale(2, layers="1"), policy=ANY)
    found = json.loads(path.read_text())
    assert found["metadata"] == {"total_size": size + 14, "total_parameters": 1}
    assert found["note"] == "Zürich"
    assert open_checkpoint(model).warnings == ()
    revert(model, by="tester")
    assert files(model) == before


@pytest.mark.parametrize("there", [True, False])
def test_a_configuration_alone_can_change_or_appear(model: Path, with_more: Callable[..., None], there: bool) -> None:
    if not there:
        (model / "config.json").unlink()
    before = files(model)
    with_more(config=CONFIG)
    receipt = change(model, scale(2, layers="1"), policy=ANY)
    assert (model / "config.json").read_bytes() == CONFIG
    assert [file.undo is None for file in receipt.files] == [not there]
    assert verify(model).sound
    revert(model, by="tester")
    assert files(model) == before


def test_names_that_are_taken_or_missing_are_refused(model: Path, with_more: Callable[..., None]) -> None:
    before = files(model)
    for bad in (New("model.layers.1.w.weight", BIASES[0].array), New("x", BIASES[0].array, like="y")):
        with_more(bad)
        with pytest.raises(UsageError):
            change(model, scale(2, layers="1"), policy=ANY)
    with_more(BIASES[0], BIASES[0])
    with pytest.raises(UsageError):
        change(model, scale(2, layers="1"), policy=ANY)
    assert files(model) == before
    assert litter(model.parent) == []


@pytest.mark.parametrize("fault", [refuse, interrupt])
@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_a_fault_at_every_call_leaves_the_old_state_or_the_new_one(
    tmp_path: Path, with_more: Callable[..., None], fault: Callable[[str], None], verb: str
) -> None:
    number, disk = 0, Disk()
    states: list[Any] = []
    while number <= len(disk.calls):
        model = _model(tmp_path / f"{number}" / "model", 1)
        old = files(model)
        with_more(BIASES[0], config=CONFIG)
        plan = approved_plan(model, scale(2, layers="1"), policy=ANY)

        def run(model: Path = model, plan: Any = plan) -> Receipt:
            return apply_plan(plan, model, out=None, policy=ANY, by="tester")

        work: Callable[[], object] = run
        if verb == "revert":
            run()
            old = files(model)

            def work(model: Path = model) -> object:
                return revert(model, by="tester")

        with installed(Disk(number, fault)) as disk, suppress(StorageError, KeyboardInterrupt, Interrupted):
            work()
        states = states or [old, files(model)]  # number 0: no fault
        assert files(model) in states
        assert verify(model).sound
        number += 1
    assert states[0] != states[1]


def test_transformers_reads_an_added_bias_as_its_own(tmp_path: Path, with_more: Callable[..., None]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=1, **settings)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    model = tmp_path / "model"
    found = open_checkpoint(model)
    weights = [name for name in found.tensors if ".self_attn." in name]
    biases = [
        New(
            name.replace("weight", "bias"),
            random_tensor((found.tensors[name].shape[0],), dtype="F32", seed=seed),
            dtype="F32",
            like=name,
        )
        for seed, name in enumerate(weights)
    ]
    assert len(biases) == 8
    with_more(*biases, config=json.dumps(found.config | {"attention_bias": True}).encode())
    change(model, scale(1.5, roles=["down_proj"]), out=tmp_path / "out", policy=ANY)
    load = transformers.AutoModelForCausalLM.from_pretrained
    state = load(tmp_path / "out").state_dict()
    for bias in biases:
        assert state[bias.name].numpy().tobytes() == bias.array.tobytes()
