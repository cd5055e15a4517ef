"""A steering vector baked into a bias, through the command line: transformers reads it, a forward hook agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from applied import resolution, stored, unresolved  # noqa: E402
from builders import a_plan  # noqa: E402
from models.oracle import token_ids  # noqa: E402
from models.tiny import build  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from planner.plan import write_plan  # noqa: E402

WIDTH, LAYER, STRENGTH = 32, 1, 2.5
WEIGHT = f"model.layers.{LAYER}.self_attn.o_proj.weight"
BIAS = f"model.layers.{LAYER}.self_attn.o_proj.bias"
Run = Callable[..., Any]


def _vector(folder: Path, size: int = WIDTH) -> torch.Tensor:
    v = torch.randn(size, generator=torch.Generator().manual_seed(3))
    mean = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    save_file({"v": v, "mean": mean}, folder / "steer.safetensors", metadata={"probe": "contrast of 40 pairs"})
    return v


def _bake(weight: str = WEIGHT, **more: Any) -> dict[str, Any]:
    vector = {"file": "steer.safetensors", "array": "v"}
    return {
        "target": {"tensors": [weight]},
        "operation": {"kind": "bake_steering", "vector": vector, "strength": STRENGTH, **more},
    }


RANK_ONE = {"without_bias": "rank_one", "input": {"file": "steer.safetensors", "array": "mean"}}


def _written(model: Path, *modifications: dict[str, Any]) -> Path:
    path = model.parent / "plan.json"
    path.write_bytes(write_plan(a_plan(model, *modifications)))
    return path


def _loaded(model: Path) -> tuple[Any, dict[str, Any]]:
    loaded, told = transformers.AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    return loaded.eval(), told


def _logits(model: Any, module: str = "", hook: Any = None) -> torch.Tensor:
    handle = model.get_submodule(module).register_forward_hook(hook) if hook else None
    with torch.no_grad():
        found = model(token_ids()).logits
    if handle:
        handle.remove()
    return found


def _everything(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("place", ["out", "in place"])
def test_a_new_bias_is_what_a_hook_adds(tmp_path: Path, planner: Run, dtype: str, place: str) -> None:
    model = build("llama").write(tmp_path / "model", dtype)
    v = _vector(tmp_path)
    before, original = _everything(model), stored(model)
    reference, _ = _loaded(model)
    plan = _written(model, _bake())

    checked = planner("check", plan, "--model", model, "--json").json
    (modification,) = checked["modifications"]
    assert checked["accepted"]
    assert modification["effect"] == "effective"
    assert {tensor["source"] for tensor in modification["tensors"]} == {"new"}
    assert any(note.startswith("config.json: attention_bias becomes true") for note in modification["notes"])
    assert modification["arrays"][0]["metadata"] == {"probe": "contrast of 40 pairs"}
    assert any("config.json would be changed: attention_bias = true" in text for text in checked["warnings"])
    steered = next(tensor for tensor in modification["tensors"] if tensor["name"] == BIAS)
    assert steered["effect"] == "effective"
    assert steered["changed_elements"] == WIDTH
    others = [tensor for tensor in modification["tensors"] if tensor["name"] != BIAS]
    assert len(others) == 11
    assert {tensor["effect"] for tensor in others} == {"void"}

    where = ("--in-place",) if place == "in place" else ("--out", tmp_path / "out")
    result = model if place == "in place" else tmp_path / "out"
    assert planner("apply", plan, "--model", model, *where, "--yes").status == 0
    after = stored(result)
    new = {name for name in after if name not in original}
    assert new == {f"model.layers.{n}.self_attn.{p}_proj.bias" for n in range(3) for p in "qkvo"}
    for name in new - {BIAS}:
        assert torch.equal(after[name], torch.zeros_like(after[name]))
        assert after[name].dtype == original[name.replace(".bias", ".weight")].dtype
    assert torch.equal(after[BIAS], (STRENGTH * v).to(after[BIAS].dtype))
    assert all(torch.equal(after[name], original[name]) for name in original)
    config = json.loads((result / "config.json").read_text())
    assert config == json.loads(before["config.json"]) | {"attention_bias": True}

    steered_model, told = _loaded(result)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    module = WEIGHT.removesuffix(".weight")
    added = (STRENGTH * v).to(after[BIAS].dtype)
    wanted = _logits(reference, module, lambda _, __, out: out + added)
    found = _logits(steered_model)
    if dtype == "F32":
        assert torch.equal(found, wanted), "zero difference"
    else:  # the product is rounded to bfloat16 before the hook adds, and is not before the bias is
        difference = (found.float() - wanted.float()).abs().max()
        assert difference <= 0.02 * wanted.float().abs().max()
        exact = _logits(reference.float(), module, lambda _, __, out: out + added.float())
        assert torch.equal(_logits(steered_model.float()), exact), "in float32, zero difference"
    assert (wanted - _logits(reference).to(wanted.dtype)).abs().max() > 0.1

    assert planner("revert", result).status == 0
    assert _everything(result) == before


def test_a_bias_that_is_there_gets_the_vector_and_nothing_is_added(tmp_path: Path, planner: Run) -> None:
    model = build("llama-bias").write(tmp_path / "model", "F32")
    v = _vector(tmp_path)
    strength = 0.2  # within the default policy, as the bias grows by less than itself
    modification = _bake()
    modification["operation"]["strength"] = strength
    plan = _written(model, modification)
    checked = planner("check", plan, "--model", model, "--json").json
    assert [t["name"] for t in checked["modifications"][0]["tensors"]] == [BIAS]
    assert checked["warnings"] == []
    assert planner("apply", plan, "--model", model, "--out", tmp_path / "out", "--yes").status == 0
    before, after = stored(model), stored(tmp_path / "out")
    assert set(after) == set(before)
    assert torch.equal(after[BIAS], (before[BIAS].double() + strength * v.double()).float())
    assert (tmp_path / "out" / "config.json").read_bytes() == (model / "config.json").read_bytes()
    reference, _ = _loaded(model)
    wanted = _logits(reference, WEIGHT.removesuffix(".weight"), lambda _, __, out: out + strength * v)
    steered, _ = _loaded(tmp_path / "out")
    assert (wanted - _logits(steered)).abs().max() < 1e-5 * wanted.abs().max()


def test_two_vectors_in_one_plan_share_the_biases_that_are_added(tmp_path: Path, planner: Run) -> None:
    model = build("llama").write(tmp_path / "model", "F32")
    v = _vector(tmp_path)
    second = WEIGHT.replace("layers.1", "layers.2")
    plan = _written(model, _bake(), _bake(second), _bake())
    checked = planner("check", plan, "--model", model, "--json").json
    assert checked["accepted"]
    assert len(checked["tensors"]) == 12
    assert planner("apply", plan, "--model", model, "--out", tmp_path / "out", "--yes").status == 0
    after = stored(tmp_path / "out")
    assert torch.equal(after[second.replace("weight", "bias")], STRENGTH * v)
    assert torch.allclose(after[BIAS], 2 * STRENGTH * v)
    reference, _ = _loaded(model)
    one = WEIGHT.removesuffix(".weight")
    handle = reference.get_submodule(one).register_forward_hook(lambda _, __, out: out + after[BIAS])
    wanted = _logits(reference, second.removesuffix(".weight"), lambda _, __, out: out + STRENGTH * v)
    handle.remove()
    steered, told = _loaded(tmp_path / "out")
    assert not told["missing_keys"]
    assert torch.equal(_logits(steered), wanted)


def test_a_ramp_of_strengths(tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model", "F32")
    _vector(tmp_path)
    modification = _bake("model.layers.{0-2}.self_attn.o_proj.weight")
    modification["operation"]["strength"] = {"ramp": [0.0, 1.0]}
    edits = resolution(model, modification)
    strengths = [step.operation.strength for step in edits.steps.values()]
    assert strengths == [0.0, 0.5, 1.0]
    assert len(edits.added) == 12


def test_qwen2_always_has_a_bias_on_queries_and_none_on_outputs(tmp_path: Path) -> None:
    model = build("qwen2").write(tmp_path / "model", "F32")
    _vector(tmp_path)
    for part in "qkv":
        edits = resolution(model, _bake(f"model.layers.1.self_attn.{part}_proj.weight"))
        assert list(edits.steps) == [f"model.layers.1.self_attn.{part}_proj.bias"]
        assert edits.added == ()
        assert edits.config == {}
    error = unresolved(model, _bake())
    assert error.code == "no-bias"
    assert "a qwen2 model has no model.layers.1.self_attn.o_proj.bias" in str(error)


def test_a_family_without_a_place_for_it_refuses_or_takes_the_approximation(tmp_path: Path, planner: Run) -> None:
    model = build("mistral").write(tmp_path / "model", "F32")
    v = _vector(tmp_path)
    refused = planner("check", _written(model, _bake()), "--model", model, "--json")
    assert refused.status == 3
    (problem,) = refused.json["problems"]
    assert problem["code"] == "no-bias"
    assert "a mistral model has no" in problem["message"]
    assert "loaders would drop it without a word" in problem["message"]
    assert "rank_one" in problem["hint"]

    plan = _written(model, _bake(**RANK_ONE))
    checked = planner("check", plan, "--model", model, "--json").json
    (modification,) = checked["modifications"]
    assert modification["effect"] == "effective"
    assert f"{WEIGHT} gets a rank-one change" in modification["notes"][0]
    assert [array["array"] for array in modification["arrays"]] == ["v", "mean"]
    assert planner("apply", plan, "--model", model, "--out", tmp_path / "out", "--yes").status == 0
    before, after = stored(model), stored(tmp_path / "out")
    assert set(after) == set(before)
    mean = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    moved = after[WEIGHT].double() @ mean.double() - before[WEIGHT].double() @ mean.double()
    assert torch.allclose(moved, STRENGTH * v.double(), atol=1e-5), "exact for the input that was given"
    aside = torch.randn(WIDTH, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    aside -= (aside @ mean.double()) / (mean.double() @ mean.double()) * mean.double()
    assert ((after[WEIGHT].double() - before[WEIGHT].double()) @ aside).abs().max() < 1e-6


def test_rank_one_on_a_conv1d_has_its_outputs_in_the_columns(tmp_path: Path) -> None:
    """GPT-2 has its biases, so the vector goes there whatever is asked for."""
    model = build("gpt2").write(tmp_path / "model", "F32")
    _vector(tmp_path)
    edits = resolution(model, _bake("transformer.h.1.attn.c_proj.weight", **RANK_ONE))
    assert list(edits.steps) == ["transformer.h.1.attn.c_proj.bias"]
    assert edits.notes == ()


def test_what_is_no_weight_of_a_linear_module_cannot_be_steered(tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model")
    _vector(tmp_path)
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        error = unresolved(model, _bake(name))
        assert f"{name} is not known to be the weight of a linear module" in str(error)
    modification = _bake()
    modification["target"]["elements"] = {"kind": "rows", "indices": "0"}
    assert "bake_steering finds its elements itself" in str(unresolved(model, modification))


def test_a_sibling_whose_dtype_has_no_zeros_here_is_no_place_for_a_bias(tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model", "BF16")
    _vector(tmp_path)
    weights = stored(model)
    name = "model.layers.2.self_attn.k_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, model / "model.safetensors")
    error = unresolved(model, _bake())
    assert error.code == "unsupported-dtype"
    assert f"to {name}, which is F8_E4M3" in str(error)
