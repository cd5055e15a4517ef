"""A probe as a whole: the same again, other batches, interruptions, little memory, 16 bits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch
from models.tiny import build
from probing import FINGERPRINT, INVENTORY, STORIES, TINY_MODEL, close, probed, written

from planner.checkpoint import open_checkpoint
from planner.errors import CheckpointError, UsageError
from planner.evidence import EvidenceFile
from planner.inference import load_model
from planner.probes import Probed, ProbeRequest, accumulation, probe
from planner.probes.measuring import Machine
from planner.probes.reduction import Reduction, direction_of

SHORT: dict[str, Any] = {"documents": 5, "max_tokens": 12}
SETS = ("raw", "calibrated", "fisher", "fisher_raw", "fisher_drift")


def run(cache: Path | None = None, progress: Any = None, **more: Any) -> Probed:
    request = {"text": STORIES} | SHORT | more
    return probe(open_checkpoint(TINY_MODEL), FINGERPRINT, ProbeRequest(**request), cache=cache, progress=progress)


def told(found: Probed) -> EvidenceFile:
    return found.evidence.model_copy(update={"created": ""})


@functools.cache
def reference() -> Probed:
    """Of two texts: a goal and a neutral one."""
    return run(goal_text=INVENTORY)


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not() -> None:
    again, other = run(goal_text=INVENTORY), run(goal_text=INVENTORY, seed=2**64)
    assert again.arrays() == reference().arrays()
    assert told(again) == told(reference())
    assert other.evidence.id != reference().evidence.id
    assert not np.array_equal(other.measured.sets["fisher"].tensors, reference().measured.sets["fisher"].tensors)


def test_other_batches_change_nothing_but_rounding() -> None:
    """The sampled labels too: they are those of the document, wherever it stands."""
    few, many = (run(goal_text=INVENTORY, groups=2, batch_tokens=size) for size in (13, 4096))
    for name in SETS:
        assert close(few.measured.sets[name].tensors, many.measured.sets[name].tensors, 1e-4), name
        assert close(few.measured.sets[name].units, many.measured.sets[name].units, 1e-4), name
    assert few.evidence.objective.temperature == pytest.approx(many.evidence.objective.temperature, rel=1e-5)


def test_groups_change_no_mean_only_how_sure_it_is() -> None:
    apart, together = reference(), run(goal_text=INVENTORY, groups=2)
    for tensor, other in zip(apart.evidence.tensors, together.evidence.tensors, strict=True):
        assert tensor.scale.raw == pytest.approx(other.scale.raw, rel=1e-3, abs=1e-6)
        assert tensor.shift.raw == pytest.approx(other.shift.raw, rel=1e-3, abs=1e-4)
    assert (apart.evidence.groups, together.evidence.groups) == (5, 2)
    assert apart.evidence.objective.loss == pytest.approx(together.evidence.objective.loss, rel=1e-6)


class Stop:
    """Ctrl-C in the middle of measuring, after so many calls for progress."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "measuring sensitivities":
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


@pytest.fixture
def measured_groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the groups that are measured from now on."""
    numbers: list[int] = []
    inner = Machine.measure

    def counted(self: Machine, *given: Any, number: int, **more: Any) -> Any:
        numbers.append(number)
        return inner(self, *given, number=number, **more)

    monkeypatch.setattr(Machine, "measure", counted)
    monkeypatch.setattr(accumulation, "_EVERY_S", 0.0)
    monkeypatch.setattr(accumulation, "_TIMES_SAVING", 0.0)
    return numbers


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "probes").glob("*")) if (cache / "probes").exists() else []


@pytest.mark.parametrize("calls", [3, 8])
def test_an_interrupted_run_goes_on(tmp_path: Path, measured_groups: list[int], calls: int) -> None:
    """Once among the documents of the goal, once among those of the drift text."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stop(calls), goal_text=INVENTORY)
    done = len(measured_groups)
    assert 0 < done < 10
    assert len(kept(tmp_path)) == 1
    measured_groups.clear()
    found = run(tmp_path, goal_text=INVENTORY)
    assert len(measured_groups) == 10 - done
    assert found.arrays() == reference().arrays(), "sketches included"
    assert told(found) == told(reference())
    # What was measured stays until it is written: writing may fail.
    measured_groups.clear()
    assert run(tmp_path, goal_text=INVENTORY).arrays() == reference().arrays()
    assert measured_groups == []
    found.discard()
    assert kept(tmp_path) == []


def test_what_was_kept_is_only_for_the_same_request(tmp_path: Path, measured_groups: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stop(3), goal_text=INVENTORY)
    for other in ({"seed": 1}, {"max_tokens": 11}, {"text": INVENTORY, "goal_text": STORIES}):
        measured_groups.clear()
        run(tmp_path, **({"goal_text": INVENTORY} | other))
        assert len(measured_groups) == 10, other
    measured_groups.clear()
    request = ProbeRequest(text=STORIES, goal_text=INVENTORY, **SHORT)
    probe(open_checkpoint(TINY_MODEL), "blake3:" + "8" * 64, request, cache=tmp_path)
    assert len(measured_groups) == 10, "of another checkpoint"


def test_a_damaged_file_is_ignored(tmp_path: Path, measured_groups: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stop(3), goal_text=INVENTORY)
    (path,) = kept(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-40] ^= 0x08  # a number that is a number still
    for damaged in (whole[: len(whole) // 2], b"", b"{}" * 100, bytes(flipped)):
        path.write_bytes(damaged)
        measured_groups.clear()
        assert run(tmp_path, goal_text=INVENTORY).arrays() == reference().arrays()
        assert len(measured_groups) == 10


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path: Path, measured_groups: list[int]) -> None:
    (tmp_path / "file").write_text("no folder")
    assert run(tmp_path / "file", goal_text=INVENTORY).arrays() == reference().arrays()


def test_a_short_run_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    run(tmp_path)
    assert kept(tmp_path) == []


def test_gradients_go_away_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the backward pass runs no gradient of another parameter is held, and none is left after it."""
    most = 0
    every: list[torch.nn.Parameter] = []
    begin, inner = Reduction.__init__, Reduction._hook

    def begun(self: Reduction, parameters: Any, *given: Any, **more: Any) -> None:
        every.extend(parameters.values())
        begin(self, parameters, *given, **more)

    def counted(self: Reduction, name: str) -> Any:
        reduce = inner(self, name)

        def watched(parameter: torch.Tensor) -> None:
            nonlocal most
            most = max(most, sum(other.grad is not None for other in every))
            reduce(parameter)
            assert parameter.grad is None

        return watched

    monkeypatch.setattr(Reduction, "__init__", begun)
    monkeypatch.setattr(Reduction, "_hook", counted)
    run(documents=2, max_tokens=4)
    assert most == 1
    assert not any(parameter._post_accumulate_grad_hooks for parameter in every)


def test_hooks_are_gone_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machines: list[Machine] = []
    inner = Machine.__post_init__

    def begun(self: Machine) -> None:
        machines.append(self)
        inner(self)

    monkeypatch.setattr(Machine, "__post_init__", begun)
    with pytest.raises(KeyboardInterrupt):
        run(progress=Stop(1))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in machines[0].parameters.values())


def test_16_bits_agree_with_32() -> None:
    narrow, wide = (run(documents=12, max_tokens=32, dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert (narrow.evidence.dtype, wide.evidence.dtype) == ("bfloat16", "float32")
    assert narrow.evidence.objective.loss == pytest.approx(wide.evidence.objective.loss, rel=0.02)
    one, other = (np.array([tensor.scale.raw for tensor in run.evidence.tensors]) for run in (narrow, wide))
    assert np.corrcoef(one, other)[0, 1] > 0.98
    assert np.abs(one - other).max() < 0.1 * np.abs(other).max()
    rows = narrow.measured.sets["raw"]
    assert (rows.tensors.dtype, rows.units.dtype) == (np.float64, np.float32)


@pytest.mark.parametrize(("stored", "memory", "chosen"), [
    ("F32", 2**40, "float32"),
    ("F64", 2**40, "float32"),
    ("BF16", 2**40, "float32"),
    ("BF16", 2**16, "bfloat16"),
    ("F16", 2**16, "float32"),
])  # fmt: skip
def test_the_dtype_of_choice_on_a_cpu(
    stored: str, memory: int, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planner.probes.device import chosen_dtype

    monkeypatch.setattr("planner.probes.device.os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}.__getitem__)
    checkpoint = open_checkpoint(build("llama").write(tmp_path, stored))
    assert chosen_dtype("auto", checkpoint, torch.device("cpu")) == getattr(torch, chosen)


@pytest.mark.parametrize("asked", ["tpu", "cpu:1", "cpu:x", "cpu:", "", "cuda:99", "cuda:-1"])
def test_a_device_that_is_not_there(asked: str) -> None:
    from planner.probes.device import chosen_device

    with pytest.raises(UsageError, match="there is no device"):
        chosen_device(asked)
    assert chosen_device("cpu").type == "cpu"


def test_numbers_that_overflow_are_refused(tmp_path: Path) -> None:
    """A finite loss can have an infinite derivative."""
    import shutil

    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))
    for shard in model.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in tensors:
            if name == "model.layers.0.self_attn.q_norm.weight":
                tensors[name] = torch.full_like(tensors[name], 3e38)
        save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not finite"):
        probe(open_checkpoint(model), FINGERPRINT, ProbeRequest(text=STORIES, **SHORT))


def test_directions_are_the_leading_singular_vectors_of_the_mean_gradient() -> None:
    """Of a matrix whose gradient falls off quickly they are exact."""
    random = np.random.default_rng(0)
    gradient = sum(
        strength * np.outer(random.normal(size=60), random.normal(size=40)) for strength in (8.0, 3.0, 1.0, 0.3)
    )
    a, b = random.normal(size=(40, 16)), random.normal(size=(33, 60)).astype(np.float32)
    u, strengths, v = direction_of(gradient @ a, b.astype(float) @ gradient, b, rank=3)
    true = np.linalg.svd(gradient, full_matrices=False)
    np.testing.assert_allclose(strengths, true.S[:3], rtol=1e-8)
    for n in range(3):
        assert u[:, n] @ true.U[:, n] * (v[n] @ true.Vh[n]) == pytest.approx(1, abs=1e-8)


def test_directions_of_the_bundled_model() -> None:
    found = probed()
    model = load_model(TINY_MODEL)
    b = 1 / found.evidence.objective.temperature
    from probing import probed_documents

    groups = probed_documents()
    total = sum(group.tokens for group in groups)
    for group in groups:
        ids = torch.tensor([group.items[0].ids[0]])
        logits = b * model(input_ids=ids[:, :-1]).logits[0]
        (torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / total).backward()
    cosines, slopes = [], []
    for name, parameter in model.named_parameters():
        direction = found.measured.directions.get(name)
        if direction is None or parameter.grad.norm() < 1e-6:
            continue
        left, strengths, right = (t.double().numpy() for t in torch.linalg.svd(parameter.grad, full_matrices=False))
        cosine = (direction.left[:, 0] @ left[:, 0]) * (right[0] @ direction.right[0])
        cosines.append((cosine, strengths[0] / strengths[1]))
        slopes.append(direction.left[:, 0] @ parameter.grad.double().numpy() @ direction.right[0] / strengths[0])
        assert direction.strengths[0] == pytest.approx(strengths[0], rel=0.25), name
    assert len(cosines) > 25
    # What is found is nearly as steep as the best direction, and is that one where it stands out.
    assert np.median(slopes) > 0.95
    assert min(slopes) > 0.6
    assert np.mean([cosine > 0.95 for cosine, gap in cosines if gap > 1.5]) > 0.8
    assert {direction.left.shape[1] for direction in found.measured.directions.values()} == {2}


def test_a_tied_copy_is_measured_under_the_name_that_every_loader_reads() -> None:
    folder = written("qwen3-tied", with_copy=True)
    checkpoint = open_checkpoint(folder)
    from probing import mapped

    from planner.probes.watching import watched_parameters

    assert list(checkpoint.tensors).index("lm_head.weight") < list(checkpoint.tensors).index(
        "model.embed_tokens.weight"
    )
    watched, skipped = watched_parameters(load_model(folder), checkpoint, mapped(checkpoint))
    assert "model.embed_tokens.weight" in watched
    assert skipped == {"lm_head.weight": "the loaded model shares it with model.embed_tokens.weight"}
    assert list(watched) == [name for name in checkpoint.tensors if name in watched]
