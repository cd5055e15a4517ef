"""Portable patches: what they make is what the plan makes, on every base of the same weights, wherever it lies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint, write_shard
from faults import Disk, installed
from portable_cases import KINDS, apply_here, arrays_of, llama, planned, rewrite
from snapshots import ANY, MEMORY, approved_plan, change, everything, files, litter, scale, short_pieces, small_model

from planner import fsio
from planner.checkpoint import fingerprint_checkpoint, open_checkpoint
from planner.errors import Locked, OutputExists, PatchMissing, PlanRefused, StalePlan, UnsafeInPlace
from planner.plan import Policy, decide, write_plan
from planner.transaction import PortablePatch, apply_patch, apply_plan, export_patch, is_portable, revert, verify

WAYS = ["out", "in-place", "low-space"]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory, where there is such a place: what is written here need not survive anything."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


def exported(kind: str, folder: Path, **options: Any) -> Path:
    """The portable patch of a plan of that kind, made somewhere."""
    model = llama(folder / "made" / "model", **options)
    apply_here(planned(model, kind), model, folder / "made" / "out")
    export_patch(folder / "made" / "out", folder / "model.patch")
    return folder / "model.patch"


def put(patch: Path, model: Path, out: Path | None, policy: Policy = ANY, **options: Any) -> Any:
    """Apply a portable patch."""
    return apply_patch(PortablePatch(patch), model, out=out, policy=policy, by="tester", **options)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_makes_the_bytes_that_the_plan_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: str, shards: int
) -> None:
    if shards > 1:
        short_pieces(monkeypatch, 512)
    patch = exported(kind, tmp_path)
    here, there = (llama(tmp_path / name / "model", shards=shards) for name in ("here", "there"))
    before, plan = files(here), planned(there, kind)
    outs = {"out": (here.parent / "out", there.parent / "out")}.get(way, (None, None))
    options = {"low_space": way == "low-space", "card": True}
    if way == "low-space" and kind in ("biases", "everything"):
        with pytest.raises(UnsafeInPlace, match="adds or removes tensors"):
            put(patch, here, None, **options)
        assert files(here) == before
        assert litter(here.parent) == []
        return
    receipt = put(patch, here, outs[0], **options)
    expected = apply_here(plan, there, outs[1], **options)
    result = Path(receipt.path)
    assert files(result) == files(Path(expected.path))
    assert b"license: mit" in (result / "README.md").read_bytes()
    assert receipt.fingerprint_after == expected.fingerprint_after == fingerprint_checkpoint(open_checkpoint(result))
    assert {t.name: (t.before, t.after) for t in receipt.tensors} == {
        t.name: (t.before, t.after) for t in expected.tensors
    }
    for one, other in zip(receipt.tensors, expected.tensors, strict=True):
        assert (one.relative_change or 0) == pytest.approx(other.relative_change or 0, rel=1e-6)
    assert verify(result).sound
    revert(result, by="tester", low_space=way == "low-space")
    assert files(result) == before
    assert litter(here.parent) == []


@pytest.mark.parametrize("dtype", ["F16", "F32", "F64"])
def test_other_dtypes(tmp_path: Path, dtype: str) -> None:
    patch = exported("everything", tmp_path, dtype=dtype)
    model = llama(tmp_path / "here" / "model", dtype=dtype, shards=2)
    put(patch, model, tmp_path / "out", card=False)
    plan = planned(model, "everything")
    apply_here(plan, model, tmp_path / "expected", card=False)
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_patches_on_each_other_come_out_one_by_one_and_give_the_chain_again(tmp_path: Path) -> None:
    model = llama(tmp_path / "model", shards=2)
    states, early = [files(model)], []
    for number, kind in enumerate(["tables", "biases", "everything", "content"], start=1):
        modifications = [m for m in KINDS[kind] if kind != "everything" or m["operation"]["kind"] != "bake_steering"]
        if kind == "content":  # one that changes what a patch before it added
            modifications = [*modifications, scale(0.5, tensors=["model.layers.1.self_attn.o_proj.bias"])]
        apply_here(approved_plan(model, *modifications, policy=ANY), model, None)
        states.append(files(model))
        export_patch(model, tmp_path / f"early-{number}")
        early.append((tmp_path / f"early-{number}").read_bytes())
    for number, patch in enumerate(early, start=1):
        export_patch(model, tmp_path / f"late-{number}", number=number)
        assert (tmp_path / f"late-{number}").read_bytes() == patch, "what came later is not in it"
    assert litter(tmp_path) == []
    base = llama(tmp_path / "again" / "model", shards=2)
    for number in range(1, 5):
        put(tmp_path / f"late-{number}", base, None)
        assert files(base) == states[number]
    revert(base, to=0, by="tester")
    assert files(base) == states[0]
    with pytest.raises(PatchMissing):
        export_patch(base, tmp_path / "none")
    with pytest.raises(PatchMissing):
        export_patch(model, tmp_path / "none", number=7)
    with pytest.raises(OutputExists):
        export_patch(model, tmp_path / "late-1")
    assert not (tmp_path / "none").exists()


def test_it_needs_no_model_library_and_says_what_it_is(tmp_path: Path) -> None:
    patch = exported("everything", tmp_path)
    model = llama(tmp_path / "here" / "model")
    (tmp_path / "plan.json").write_bytes(write_plan(planned(model, "tables")))
    (tmp_path / "policy.toml").write_text("largest_relative_change = 1000.0\n")
    assert is_portable(patch)
    assert not any(is_portable(tmp_path / name) for name in ("plan.json", "policy.toml", "no-such", "here"))
    script = (
        "import sys; from planner.cli import main; status = main(sys.argv[1:]);"
        "print(sorted({'torch', 'litellm', 'jinja2', 'transformers', 'openai', 'httpx'} & set(sys.modules)));"
        "sys.exit(status)"
    )
    words = ["apply", patch, "--model", model, "--policy", tmp_path / "policy.toml", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_another_base_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    patch = exported("tables", tmp_path)
    world = tmp_path / "world"
    other = llama(world / "changed")
    apply_here(approved_plan(other, scale(1.1, roles=["q_proj"]), policy=ANY), other, None)
    unpatched = llama(world / "unpatched")
    tensors = {"w.weight": ("BF16", random_tensor((4, 4)))}
    small = write_checkpoint(world / "small", tensors)
    config = llama(world / "config")
    (config / "config.json").write_text((config / "config.json").read_text() + "\n")
    elsewhere = llama(world / "elsewhere")  # differs only in what the patch does not touch
    raw = bytearray((elsewhere / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (elsewhere / "model.safetensors").write_bytes(raw)
    inside = llama(world / "inside")  # differs in what it does touch
    begin = open_checkpoint(inside).tensors["model.layers.0.mlp.down_proj.weight"].begin
    raw = bytearray((inside / "model.safetensors").read_bytes())
    raw[begin] ^= 1
    (inside / "model.safetensors").write_bytes(raw)
    twice = llama(world / "twice")
    put(patch, twice, None)
    before = everything(world)
    for base in (other, small, config, elsewhere, inside, twice):
        for out in (None, world / "out"):
            with installed(Disk()) as disk, pytest.raises(StalePlan) as caught:
                put(patch, base, out)
            assert caught.value.exit_status == 4
            assert "mkdir" not in disk.calls or base in (config, elsewhere)
            assert everything(world) == before
    put(patch, unpatched, None)


# -- sizes -------------------------------------------------------------------------------------------------------------


def sized(tmp_path: Path, model: Path, operation: dict[str, Any], target: dict[str, Any]) -> tuple[float, float]:
    """How large undo data and patch are, in parts of the bytes that change."""
    plan = approved_plan(model, {"target": target, "operation": operation}, policy=ANY)
    receipt = apply_plan(plan, model, out=tmp_path / "out", policy=ANY, by="tester", folder=tmp_path)
    export_patch(tmp_path / "out", tmp_path / "model.patch")
    size = (tmp_path / "model.patch").stat().st_size
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "model.patch").unlink()
    return receipt.undo_bytes / receipt.changed_bytes, size / receipt.changed_bytes


def test_a_pointwise_patch_of_the_bundled_model_is_small(tmp_path: Path, tiny_model: Path) -> None:
    every = {"roles": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]}
    undo, patch = sized(tmp_path, tiny_model, {"kind": "scale", "factor": 1.02}, every)
    assert undo < 0.006
    assert patch < 0.02  # nearly all of it says which tensors there are: the model is small


def gaussian(folder: Path, mebibytes: int, dtype: str = "BF16") -> Path:
    """Weights as they are drawn, in matrices of 8 MiB."""
    width = {"BF16": 2, "F32": 4}[dtype]
    names = [f"model.layers.{n}.mlp.down_proj.weight" for n in range(mebibytes // 8)]
    shape = (1024, 8 * 2**20 // 1024 // width)
    tensors = {name: (dtype, random_tensor(shape, dtype=dtype, seed=n)) for n, name in enumerate(names)}
    return write_checkpoint(folder, tensors)


def test_sizes_on_weights_as_they_are_drawn(tmp_path: Path) -> None:
    model = gaussian(tmp_path / "model", 16)
    generator = np.random.default_rng(0)
    shape = open_checkpoint(model).tensors["model.layers.0.mlp.down_proj.weight"].shape
    drawn = {"u": generator.normal(0, 1, shape[0]), "v": generator.normal(0, 1, shape[1])}
    drawn["rows"] = generator.uniform(0.9, 1.1, shape[0])
    arrays = {name: ("F32", a.shape, a.astype(np.float32).tobytes()) for name, a in drawn.items()}
    write_shard(tmp_path / "arrays.safetensors", arrays)
    file = {"file": "arrays.safetensors"}
    first = {"layers": "0"}
    found = {
        "one factor": sized(tmp_path, model, {"kind": "scale", "factor": 1.02}, {"roles": ["down_proj"]}),
        "rows": sized(tmp_path, model, {"kind": "scale", "factor": file | {"array": "rows", "axis": "rows"}}, first),
        "rank one": sized(
            tmp_path,
            model,
            {"kind": "rank_one", "u": file | {"array": "u"}, "v": file | {"array": "v"}, "strength": 0.001},
            first,
        ),
        "noise": sized(tmp_path, model, {"kind": "noise", "std": 0.05, "seed": 1}, first),
    }
    most = {"one factor": (0.002, 0.001), "rows": (0.03, 0.002), "rank one": (0.05, 0.04), "noise": (0.8, 0.8)}
    for what, (undo, patch) in found.items():
        assert undo < most[what][0], (what, undo, patch)
        assert patch < most[what][1], (what, undo, patch)


def test_undo_data_of_any_change_at_all_are_no_more_than_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planner.transaction import work

    model = gaussian(tmp_path / "model", 8)
    random = np.random.default_rng(2)

    def anything(checkpoint: Any, edit: Any) -> Any:
        nbytes = checkpoint.tensors[edit.name].nbytes
        content = (random.integers(0, 256, nbytes, np.uint8) & 0xBF).reshape(-1)  # bit 6 clear: finite as BF16
        return lambda: iter([content])

    monkeypatch.setattr(work, "_rewritten", anything)
    plan = approved_plan(
        model, {"target": {"layers": "0"}, "operation": {"kind": "noise", "std": 0.05, "seed": 1}}, policy=ANY
    )
    before = files(model)
    receipt = apply_plan(plan, model, out=None, policy=ANY, by="tester")
    assert receipt.changed_bytes == 8 * 2**20
    assert receipt.undo_bytes <= 1.01 * receipt.changed_bytes + 4096
    revert(model, by="tester")
    assert files(model) == before


# -- the limits of who applies it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"protected": ("*.layers.1.*o_proj.weight",)}, "o_proj.weight: protected"),
        ({"protected": ("*.bias",)}, "bias: protected"),
        ({"operations": ("scale", "noise")}, "bake_steering: not among"),
        ({"largest_relative_change": 0.05}, "would change by 0.1"),
        ({"largest_total_change": 0.02}, "all tensors together"),
        ({"most_tensors": 3}, "most_tensors = 3"),
        ({"most_modifications": 2}, "beyond most_modifications"),
    ],
)
def test_the_policy_of_who_applies_it_holds(tmp_path: Path, policy: dict[str, Any], words: str) -> None:
    patch = exported("everything", tmp_path)
    model = llama(tmp_path / "here" / "model")
    policy = {"largest_relative_change": 1e30, "largest_total_change": 1e30} | policy
    if "protected" in policy and "o_proj" in policy["protected"][0]:
        patch = exported("content", tmp_path / "other")
    before = everything(model.parent)
    for out in (None, model.parent / "out"):
        with pytest.raises(PlanRefused) as caught:
            put(patch, model, out, Policy(**policy))
        assert words in "\n".join(caught.value.problems)
        assert caught.value.exit_status == 3
        assert everything(model.parent) == before


def test_patches_share_a_budget(tmp_path: Path) -> None:
    made, policy = llama(tmp_path / "made" / "model"), Policy(largest_cumulative_change=0.25)
    for number in (1, 2):
        apply_here(approved_plan(made, scale(1.15, roles=["q_proj"]), policy=ANY), made, None)
        export_patch(made, tmp_path / f"{number}.patch")
    model = llama(tmp_path / "here" / "model")
    put(tmp_path / "1.patch", model, None, policy)
    before = everything(model.parent)
    with pytest.raises(PlanRefused, match="too far from the original"):
        put(tmp_path / "2.patch", model, None, policy)
    assert everything(model.parent) == before


def test_a_rejected_modification_is_not_in_it(tmp_path: Path) -> None:
    model = llama(tmp_path / "model")
    plan = approved_plan(model, *KINDS["tables"], policy=ANY)
    plan = decide(plan, ["m02"], "rejected", reviewer="ann", policy=ANY)
    apply_here(plan, model, tmp_path / "out")
    head = export_patch(tmp_path / "out", tmp_path / "model.patch")
    assert not [tensor.name for tensor in head.tensors if "q_proj" in tensor.name]
    receipt = put(tmp_path / "model.patch", model, tmp_path / "again")
    assert receipt.rejected == ("m02",)
    smuggled = rewrite(
        tmp_path / "model.patch", tmp_path / "x.patch", lambda h: h["tensors"][0].update(modifications=["m02"])
    )
    with pytest.raises(PlanRefused, match="nobody approved"):
        put(smuggled, model, tmp_path / "x")
    assert json.loads(arrays_of(tmp_path / "model.patch")["patch"])["config"] == {}


def test_two_exports_to_one_file_take_turns(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    change(model, scale(2, layers="0"), policy=ANY)
    out = tmp_path / "a.patch"
    with fsio.lock(tmp_path / ".a.patch.planner-lock"), pytest.raises(Locked):
        export_patch(model, out)
    assert not out.exists()
    export_patch(model, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.patch", "model"]
