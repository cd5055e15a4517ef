"""Operations that read files beside the plan: vectors, directions, thin matrices, LoRA folders, other checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from applied import applied, changed, resolution, rewritten, stored, unresolved  # noqa: E402
from blake3 import blake3  # noqa: E402
from builders import random_tensor, write_checkpoint  # noqa: E402
from models.tiny import build  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
WIDTH, INNER = 32, 48


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    arrays = {
        "rows": _random(INNER, seed=1).float(),
        "columns": _random(WIDTH, seed=2).float(),
        f"of.{UP}": _random(INNER, seed=3).float(),
        "layer.1": _random(WIDTH, seed=4).float(),
        "d": _random(WIDTH, seed=5).float(),
        "e": _random(WIDTH, seed=6).float(),
        "a": _random(3, WIDTH, seed=7).float(),
        "b": _random(INNER, 3, seed=8).float(),
        "nothing": torch.zeros(WIDTH),
    }
    save_file(arrays, tmp_path / "beside.safetensors", metadata={"made_by": "a probe"})
    return build("llama").write(tmp_path / "model", "BF16")


def _array(name: str, **more: Any) -> dict[str, Any]:
    return {"file": "beside.safetensors", "array": name, **more}


def _on(name: str, kind: str, **parameters: Any) -> dict[str, Any]:
    return {"target": {"tensors": [name]}, "operation": {"kind": kind, **parameters}}


def _beside(model: Path, name: str) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(model.parent / "beside.safetensors")[name]


def test_a_factor_for_each_row_or_column_comes_from_a_file(model: Path) -> None:
    before = stored(model)[UP].float()
    by_row = rewritten(model, _on(UP, "scale", factor=_array("rows", axis="rows")))
    assert torch.equal(by_row[UP], (before * _beside(model, "rows")[:, None]).bfloat16())
    by_column = rewritten(model, _on(UP, "scale", factor=_array("columns", axis="columns")))
    assert torch.equal(by_column[UP], (before * _beside(model, "columns")).bfloat16())
    assert changed(stored(model), by_column) == {UP}


def test_an_array_is_named_by_tensor_or_layer_and_says_where_it_is_from(model: Path) -> None:
    before = stored(model)[UP].float()
    edits = resolution(model, _on(UP, "scale", factor=_array("of.{tensor}", axis="rows")))
    (source,) = edits.provenance
    assert (source.file, source.array, source.metadata) == ("beside.safetensors", f"of.{UP}", {"made_by": "a probe"})
    assert source.digest == "blake3:" + blake3((model.parent / "beside.safetensors").read_bytes()).hexdigest()
    found = rewritten(model, _on(UP, "scale", factor=_array("of.{tensor}", axis="rows")))[UP]
    assert torch.equal(found, (before * _beside(model, f"of.{UP}")[:, None]).bfloat16())
    found = rewritten(model, _on(UP, "scale", factor=_array("layer.{layer}", axis="columns")))[UP]
    assert torch.equal(found, (before * _beside(model, "layer.1")).bfloat16())
    error = unresolved(model, _on(UP.replace(".1.", ".2."), "scale", factor=_array("layer.{layer}", axis="columns")))
    assert error.code == "array-unusable"
    assert "layer.1" in str(error), "the nearest name is shown"


def test_an_array_of_another_length_is_a_problem_and_no_bug(model: Path) -> None:
    from builders import a_plan

    from planner.checkpoint import open_checkpoint
    from planner.effects import check
    from planner.plan import Policy
    from planner.profile import profile_of

    checkpoint = open_checkpoint(model)
    wrong = (
        _on(UP, "scale", factor=_array("columns", axis="rows")),
        _on(UP, "rank_one", u=_array("columns"), v=_array("columns"), strength=1),
        _on(UP, "project_out", direction=_array("rows"), strength=1),
        _on(UP, "project_out", direction=_array("nothing"), strength=1),
        _on(UP, "rotate", first=_array("d"), second=_array("d"), angle=30),
        _on(UP, "low_rank_add", a=_array("b"), b=_array("a")),
        _on("model.layers.1.self_attn.o_proj.weight", "bake_steering", vector=_array("rows"), strength=1),
        _on(UP, "spectral_scale", first=33, factor=2),
        _on(UP, "scale", factor=1.5),
    )
    report = check(a_plan(model, *wrong), checkpoint, profile_of(checkpoint), Policy(), folder=model.parent)
    assert [(p.modification, p.code) for p in report.problems] == [(f"m{n:02d}", "does-not-fit") for n in range(1, 9)]
    assert all(problem.hint for problem in report.problems)
    assert [item.id for item in report.modifications] == ["m09"]


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_direction_is_taken_out_on_the_side_that_the_map_knows(model: Path, strength: float) -> None:
    """Readers have the stream in their columns, writers in their rows; the embedding writes with its columns."""
    direction = _beside(model, "d").double()
    direction /= direction.norm()
    readers = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    names = [f"model.layers.1.{role}.weight" for role in readers] + ["lm_head.weight", "model.embed_tokens.weight"]
    writers = [f"model.layers.1.{role}.weight" for role in ("self_attn.o_proj", "mlp.down_proj")]
    modification = {
        "target": {"tensors": names + writers},
        "operation": {"kind": "project_out", "direction": _array("d"), "strength": strength},
    }
    before, after = stored(model), rewritten(model, modification)
    assert changed(before, after) == {*names, *writers}
    for name in names:
        w = before[name].double()
        expected = w - strength * torch.outer(w @ direction, direction)
        assert torch.allclose(after[name].double(), expected, rtol=2**-8, atol=1e-4)
    for name in writers:
        w = before[name].double()
        expected = w - strength * torch.outer(direction, direction @ w)
        assert torch.allclose(after[name].double(), expected, rtol=2**-8, atol=1e-4)


def test_a_conv1d_has_its_sides_exchanged(tmp_path: Path) -> None:
    model = build("gpt2").write(tmp_path / "model", "F32")
    save_file({"d": _random(WIDTH, seed=5)}, tmp_path / "beside.safetensors")
    direction = _beside(model, "d")
    direction /= direction.norm()
    reader, writer = "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_proj.weight"
    before = stored(model)
    for kind in (
        {"kind": "project_out", "direction": _array("d"), "strength": 1.0},
        {"kind": "rotate", "first": _array("d"), "second": _array("d2"), "angle": 90},
    ):
        if kind["kind"] == "rotate":
            save_file({"d": _random(WIDTH, seed=5), "d2": _random(WIDTH, seed=6)}, tmp_path / "beside.safetensors")
        after = rewritten(model, {"target": {"tensors": [reader, writer]}, "operation": kind})
        if kind["kind"] == "project_out":
            assert (direction @ after[reader].double()).abs().max() < 1e-6
            assert (after[writer].double() @ direction).abs().max() < 1e-6
            continue
        other = _beside(model, "d2")
        q = other - (other @ direction) * direction
        q /= q.norm()
        turn = torch.eye(WIDTH, dtype=torch.float64) - torch.outer(direction, direction) - torch.outer(q, q)
        turn += torch.outer(q, direction) - torch.outer(direction, q)
        assert torch.allclose(after[reader].double(), turn @ before[reader].double(), atol=1e-6)
        assert torch.allclose(after[writer].double(), before[writer].double() @ turn.T, atol=1e-6)


def test_what_neither_reads_nor_writes_the_stream_has_no_side(model: Path) -> None:
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        for operation in (
            {"direction": _array("d"), "strength": 1, "kind": "project_out"},
            {"first": _array("d"), "second": _array("e"), "angle": 9, "kind": "rotate"},
        ):
            error = unresolved(model, {"target": {"tensors": [name]}, "operation": operation})
            assert f"{name} neither reads the residual stream nor writes to it" in str(error)
            assert "axis" in error.hint
    config = json.loads((model / "config.json").read_text()) | {"model_type": "something_new"}
    (model / "config.json").write_text(json.dumps(config))
    plain = _on(UP, "project_out", direction=_array("d"), strength=1.0)
    assert "something_new" in unresolved(model, plain).hint
    plain["operation"]["axis"] = "columns"
    assert changed(stored(model), rewritten(model, plain)) == {UP}


def test_rank_one_and_thin_matrices_are_added_in_float32_and_rounded_once(model: Path) -> None:
    before = stored(model)[UP].float()
    u, v = _beside(model, "rows"), _beside(model, "columns")
    found = rewritten(model, _on(UP, "rank_one", u=_array("rows"), v=_array("columns"), strength=0.03))[UP]
    assert torch.equal(found, (before + torch.outer(u, v) * torch.tensor(0.03)).bfloat16())
    product = _beside(model, "b") @ _beside(model, "a")
    found = rewritten(model, _on(UP, "low_rank_add", a=_array("a"), b=_array("b"), weight=-0.5))[UP]
    expected = before + product * -0.5
    near = (found.float() - expected).abs() / expected.abs().clamp_min(1e-3)
    assert near.max() <= 2**-8
    assert torch.equal(found, expected.bfloat16()) or (found != expected.bfloat16()).float().mean() < 1e-3
    ramp = {"ramp": [0.0, 1.0]}
    names = ["model.layers.{0-1}.mlp.up_proj.weight"]
    operation = {"kind": "rank_one", "u": _array("rows"), "v": _array("columns"), "strength": ramp}
    after = rewritten(model, {"target": {"tensors": names}, "operation": operation})
    assert changed(stored(model), after) == {UP}
    assert torch.equal(after[UP], (before + torch.outer(u, v)).bfloat16())


def _lora(folder: Path, modules: dict[str, tuple[int, int]], *, r: int = 4, alpha: float = 6) -> dict[str, Any]:
    folder.mkdir()
    arrays = {}
    for number, (module, (rows, columns)) in enumerate(modules.items()):
        arrays[f"base_model.model.{module}.lora_A.weight"] = _random(r, columns, seed=50 + number).float() * 0.1
        arrays[f"base_model.model.{module}.lora_B.weight"] = _random(rows, r, seed=90 + number).float() * 0.1
    config = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "bias": "none", "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "adapter_model.safetensors")
    return arrays


def test_a_lora_folder_is_added_as_its_configuration_says(model: Path) -> None:
    module, other = UP.removesuffix(".weight"), DOWN.removesuffix(".weight")
    arrays = _lora(model.parent / "adapter", {module: (INNER, WIDTH), other: (WIDTH, INNER)})
    a, b = (arrays[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    before = stored(model)
    for weight in (1.0, -0.5):
        after = rewritten(model, _on(UP, "low_rank_add", lora="adapter", weight=weight))
        expected = before[UP].float() + (b @ a) * (6 / 4 * weight)
        assert torch.equal(after[UP], expected.bfloat16())
        assert changed(before, after) == {UP}
    edits = resolution(model, _on(UP, "low_rank_add", lora="adapter"))
    assert edits.notes == ("the adapter also changes 1 tensors that the target leaves out",)
    both = {"target": {"tensors": [UP, DOWN]}, "operation": {"kind": "low_rank_add", "lora": "adapter"}}
    assert resolution(model, both).notes == ()
    result = applied(model, both)
    assert changed(before, stored(result)) == {UP, DOWN}
    strange = {"target": {"roles": ["up_proj"]}, "operation": {"kind": "low_rank_add", "lora": "adapter"}}
    error = unresolved(model, strange)
    assert error.code == "adapter-unusable"
    assert (
        str(error) == "the adapter adapter does not change model.layers.0.mlp.up_proj.weight and 1 more of the target"
    )
    assert error.hint == "it changes down_proj, up_proj"


def test_the_delta_can_be_rounded_first(model: Path) -> None:
    module = UP.removesuffix(".weight")
    arrays = _lora(model.parent / "adapter", {module: (INNER, WIDTH)})
    a, b = (arrays[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    before = stored(model)[UP]
    found = rewritten(model, _on(UP, "low_rank_add", lora="adapter", rounding="delta_first"))[UP]
    delta = ((b @ a) * 1.5).bfloat16()
    assert torch.equal(found, before + delta)
    assert not torch.equal(found, rewritten(model, _on(UP, "low_rank_add", lora="adapter"))[UP])


def test_an_adapter_for_a_conv1d_is_turned(tmp_path: Path) -> None:
    model = build("gpt2").write(tmp_path / "model", "F32")
    name = "transformer.h.1.mlp.c_fc"
    arrays = _lora(tmp_path / "adapter", {name: (INNER, WIDTH)})
    a, b = (arrays[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    before = stored(model)[f"{name}.weight"]
    found = rewritten(model, _on(f"{name}.weight", "low_rank_add", lora="adapter"))[f"{name}.weight"]
    assert torch.allclose(found, before + 1.5 * (b @ a).T, atol=1e-7)


def test_a_blend_takes_the_same_tensor_of_another_folder(model: Path) -> None:
    other = build("llama", seed=1).write(model.parent / "tuned", "F32")
    mine, theirs = stored(model)[UP].double(), stored(other)[UP].double()
    half = rewritten(model, _on(UP, "blend", checkpoint="tuned", weight=0.5))
    assert torch.equal(half[UP], (mine + 0.5 * (theirs - mine)).float().bfloat16())
    whole = rewritten(model, _on(UP, "blend", checkpoint="tuned", weight=1.0))[UP]
    assert torch.equal(whole, stored(other)[UP].bfloat16())
    by_path = stored(applied(model, _on(UP, "blend", checkpoint=str(other), weight=0.5)))
    assert torch.equal(by_path[UP], half[UP])
    assert changed(stored(model), by_path) == {UP}


def test_a_blend_of_more_than_one_block_takes_the_same_rows(tmp_path: Path) -> None:
    shape = (1100, 1024)  # blocks are of 2^20 elements
    for folder, seed in (("model", 1), ("tuned", 2)):
        write_checkpoint(tmp_path / folder, {UP: ("BF16", random_tensor(shape, seed=seed))})
    after = rewritten(tmp_path / "model", _on(UP, "blend", checkpoint="tuned", weight=1.0))
    assert torch.equal(after[UP], stored(tmp_path / "tuned")[UP])


def test_a_blend_with_what_is_not_there_is_a_problem_and_fetches_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    fetched: list[str] = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: fetched.append(name))
    monkeypatch.delenv("PLANNER_OFFLINE")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    build("llama-wide").write(tmp_path / "wide")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(model, elsewhere / "nearby")
    monkeypatch.chdir(elsewhere)
    folder = tmp_path
    for where, said in (
        ("nobody/nothing", "nobody/nothing"),
        ("missing", "missing"),
        ("nearby", "the plan's folder holds no such checkpoint"),
        ("../tmp", "climbs with `..`"),
    ):
        error = unresolved(model, _on(UP, "blend", checkpoint=where, weight=1), folder)
        assert error.code == "other-unusable", where
        assert said in str(error)
        assert error.hint
    name = "model.layers.1.self_attn.q_proj.weight"
    error = unresolved(model, _on(name, "blend", checkpoint="wide", weight=1), folder)
    assert f"{name} is F32 [40, 32] in wide" in str(error)
    gone = {"target": {"tensors": ["lm_head.weight"]}, "operation": {"kind": "blend", "checkpoint": "t", "weight": 1}}
    build("llama-tied").write(tmp_path / "t")
    assert "lm_head.weight is not there in t" in str(unresolved(model, gone, folder))
    assert fetched == []


def test_files_outside_the_plans_folder_are_refused(model: Path) -> None:
    inner = model.parent / "plans"
    inner.mkdir()
    (inner / "link.safetensors").symlink_to(model.parent / "beside.safetensors")
    _lora(model.parent / "adapter", {UP.removesuffix(".weight"): (INNER, WIDTH)})
    for file in ("../beside.safetensors", "link.safetensors", "a/../../beside.safetensors"):
        factor = {"file": file, "array": "rows", "axis": "rows"}
        error = unresolved(model, _on(UP, "scale", factor=factor), inner)
        assert error.code == "array-unusable"
        assert "absolute path" in str(error)
    for where, kind in (("../adapter", "lora"), ("../tuned", "checkpoint")):
        operation = {"kind": "low_rank_add", "lora": where} if kind == "lora" else {"kind": "blend", "weight": 1}
        operation |= {} if kind == "lora" else {"checkpoint": where}
        error = unresolved(model, {"target": {"tensors": [UP]}, "operation": operation}, inner)
        assert "climbs with `..`" in str(error)
    absolute = {"file": str(model.parent / "beside.safetensors"), "array": "rows", "axis": "rows"}
    assert changed(stored(model), rewritten(model, _on(UP, "scale", factor=absolute), folder=inner)) == {UP}


def test_a_file_with_another_digest_is_refused(model: Path) -> None:
    digest = "blake3:" + blake3((model.parent / "beside.safetensors").read_bytes()).hexdigest()
    good = _on(UP, "scale", factor=_array("rows", axis="rows", digest=digest))
    expected = rewritten(model, good)[UP]
    assert np.isfinite(expected.float().numpy()).all()
    save_file({"rows": _random(INNER, seed=99)}, model.parent / "beside.safetensors")
    error = unresolved(model, good)
    assert error.code == "array-unusable"
    assert "it is not the file that the plan was made with" in str(error)
