"""`planner import-patch`: from a list made elsewhere to a plan that the other commands take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import random_tensor, write_checkpoint

from planner.checkpoint import open_checkpoint
from planner.plan import read_plan, resolve

PARTS = {
    "self_attn.q_proj": (16, 8),
    "self_attn.k_proj": (8, 8),
    "self_attn.v_proj": (8, 8),
    "self_attn.o_proj": (8, 16),
    "self_attn.q_norm": (4,),
    "self_attn.k_norm": (4,),
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
    "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
}


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """Shaped and named as Qwen3-0.6B with its 28 layers, and tied as it is, but tiny: 311 tensors."""
    shapes = {"model.embed_tokens.weight": (32, 8), "lm_head.weight": (32, 8), "model.norm.weight": (8,)}
    shapes |= {f"model.layers.{n}.{part}.weight": shape for n in range(28) for part, shape in PARTS.items()}
    tensors = {name: ("BF16", random_tensor(shape, seed=seed)) for seed, (name, shape) in enumerate(shapes.items())}
    assert len(tensors) == 311
    return write_checkpoint(tmp_path / "qwen", tensors)


@pytest.fixture
def listed(tmp_path: Path) -> Any:
    def write(*entries: Any) -> Path:
        path = tmp_path / "list.json"
        path.write_text(json.dumps(entries))
        return path

    return write


def test_the_published_list_of_44_resolves_to_44_tensors(planner, qwen, assets, tmp_path):
    patches = assets / "tensor_slayer_44.json"
    if not patches.is_file():
        pytest.skip(f"no list at {patches}")
    out = tmp_path / "plan.json"
    result = planner("import-patch", patches, "--model", qwen, "--out", out)
    assert result.status == 0, result.err
    assert "44 modifications of 44 tensors" in result.out
    assert f"next: planner check {out} --model {qwen}" in result.err
    plan = read_plan(out.read_text())
    given = json.loads(patches.read_text())
    found = [resolve(m.target, list(open_checkpoint(qwen).tensors)) for m in plan.modifications]
    assert found == [(entry["tensor"],) for entry in given]
    assert len(set(found)) == 44
    assert [m.operation.kind for m in plan.modifications] == [entry["operation"] for entry in given]
    assert sum(m.operation.kind == "scale" for m in plan.modifications) == 41
    unpublished = [m for m, entry in zip(plan.modifications, given, strict=True) if entry["confidence"] is None]
    assert len(unpublished) == 3
    assert all(m.confidence == 0 and "No confidence was published" in m.reasoning for m in unpublished)
    assert "3 of 44 entries come without a confidence" in plan.note
    assert "blog_target (in 1)" in plan.note
    assert plan.analyst.kind == "imported"
    assert plan.review == {}


def test_a_list_of_every_form_becomes_a_plan_that_check_accepts_or_judges(planner, qwen, listed, tmp_path):
    out = tmp_path / "plan.json"
    patches = listed(
        {"tensor": "model.layers.3.mlp.up_proj.weight", "operation": "scale", "value": 1.1, "confidence": 0.5},
        {"tensor_name": "model.layers.3.mlp.up_proj.weight", "operation": "add", "value": 0.01, "reason": "why not"},
        {"tensor": "model.layers.4.mlp.up_proj.weight", "operation": "clamp", "value": [-0.05, 0.05], "target": "all"},
        {"tensor": "model.layers.5.mlp.up_proj.weight", "operation": "clamp", "value": {"min": -0.05, "max": 0.05}},
        {"tensor": "model.layers.6.mlp.up_proj.weight", "operation": "clamp_max", "value": 0.01},
        {"tensor": "model.layers.7.mlp.up_proj.weight", "operation": "clamp_min", "value": -0.01},
        {"tensor": "model.layers.8.mlp.up_proj.weight", "operation": "zero"},
    )
    result = planner("import-patch", patches, "--model", qwen, "--goal", "try it", "--out", out, "--json")
    assert result.status == 0, result.err
    assert result.json == json.loads(out.read_text())
    assert result.json["goal"] == "try it"
    assert len(result.json["modifications"]) == 7
    checked = planner("check", out, "--model", qwen, "--json").json
    assert {problem["code"] for problem in checked["problems"]} <= {"outside-policy"}, checked["problems"]
    assert [found["id"] for found in checked["modifications"]] == [f"m{number:02d}" for number in range(1, 8)]


def test_unknown_tensors_are_refused_all_at_once_with_what_is_near(planner, qwen, listed, tmp_path):
    out = tmp_path / "plan.json"
    patches = listed(
        {"tensor": "model.layers.3.self_attn.qproj.weight", "operation": "scale", "value": 1.1},
        {"tensor": "model.layers.3.mlp.up_proj.weight", "operation": "scale", "value": 1.1},
        {"tensor": "model.layers.28.mlp.up_proj.weight", "operation": "scale", "value": 1.1},
    )
    result = planner("import-patch", patches, "--model", qwen, "--out", out, "--json")
    assert result.status == 3
    assert result.json["error"]["code"] == "plan-invalid"
    first, second = result.json["error"]["problems"]
    assert "entry 1" in first
    assert "nearest: model.layers.3.self_attn.q_proj.weight" in first
    assert "entry 3" in second
    assert "nearest: model.layers.27.mlp.up_proj.weight" in second
    assert not out.exists()


def test_a_share_needs_to_be_told_what_it_is_of(planner, qwen, listed, tmp_path):
    out = tmp_path / "plan.json"
    name = "model.layers.3.mlp.up_proj.weight"
    patches = listed({"tensor": name, "operation": "scale", "value": 1.1, "target": "top 10%"})
    refused = planner("import-patch", patches, "--model", qwen, "--out", out)
    assert refused.status == 3
    assert "--top magnitude or --top signed" in refused.err
    for top in ("magnitude", "signed"):
        path = tmp_path / f"{top}.json"
        assert planner("import-patch", patches, "--model", qwen, "--top", top, "--out", path).status == 0
        elements = json.loads(path.read_text())["modifications"][0]["target"]["elements"]
        assert elements == {"kind": f"{top}_quantile", "above": 0.9, "below": None}
    assert planner("import-patch", patches, "--model", qwen, "--top", "most", "--out", out).status == 2


def test_what_is_there_already_is_kept(planner, qwen, listed, tmp_path):
    out = tmp_path / "plan.json"
    out.write_text("mine")
    patches = listed({"tensor": "lm_head.weight", "operation": "zero"})
    result = planner("import-patch", patches, "--model", qwen, "--out", out)
    assert result.status == 2
    assert "exists" in result.err
    assert out.read_text() == "mine"
    assert planner("import-patch", tmp_path / "nowhere.json", "--model", qwen, "--out", tmp_path / "p").status == 2


def test_a_strangers_names_do_not_steer_the_terminal(planner, qwen, listed, tmp_path):
    patches = listed({"tensor": "lm_head.weight", "operation": "zero", "reason": "\x1b[2J", "\x1b[31mred": 1})
    result = planner("import-patch", patches, "--model", qwen, "--out", tmp_path / "plan.json")
    assert result.status == 0
    assert "\x1b" not in result.out + result.err
    assert "\\x1b[31mred (in 1)" in result.out
