"""`planner check`: what people see at any width, what programs read, how it ends; and the published list of 44."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from builders import a_plan, random_tensor, write_checkpoint

from planner.dtypes import FLOATS
from planner.plan import write_plan

REPOSITORY = Path(__file__).parents[2]
Run = Callable[..., Any]

SIZES = {"hidden_size": 16, "num_hidden_layers": 28, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 8, "intermediate_size": 24, "vocab_size": 40, "max_position_embeddings": 64}
CONFIG = {"model_type": "qwen3", "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "hidden_act": "silu", **SIZES}
PARTS = {
    "self_attn.q_proj": (32, 16),
    "self_attn.k_proj": (16, 16),
    "self_attn.v_proj": (16, 16),
    "self_attn.o_proj": (16, 32),
    "self_attn.q_norm": (8,),
    "self_attn.k_norm": (8,),
    "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
    "input_layernorm": (16,),
    "post_attention_layernorm": (16,),
}


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """Qwen3-0.6B's architecture and names, tiny: 28 layers, both copies of the tied tensor stored, bfloat16."""
    shapes = {"model.embed_tokens.weight": (40, 16), "model.norm.weight": (16,)}
    shapes |= {f"model.layers.{n}.{part}.weight": shape for n in range(28) for part, shape in PARTS.items()}
    tensors = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        patterns = random_tensor(shape, seed=seed)
        if len(shape) == 1:
            values = np.random.default_rng(seed).uniform(0.6, 1.5, shape).astype("<f4")
            patterns = FLOATS["BF16"].encode(values)
        tensors[name] = ("BF16", patterns)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return write_checkpoint(tmp_path / "qwen", tensors, config=CONFIG)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Tables in so many columns."""
    return lambda width: monkeypatch.setattr("planner.cli.console._PIPED_WIDTH", width)


def _plan(model: Path, *modifications: dict[str, Any]) -> Path:
    path = model.parent / "plan.json"
    path.write_bytes(write_plan(a_plan(model, *modifications)))
    return path


def _scale(name: str, factor: float) -> dict[str, Any]:
    return {"target": {"tensors": [name]}, "operation": {"kind": "scale", "factor": factor}}


Q, DOWN = "model.layers.3.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight"
NORM = "model.layers.3.post_attention_layernorm.weight"
VOID = _scale("model.layers.4.mlp.down_proj.weight", 1.0001)


def _valid(document: Any) -> None:
    jsonschema.Draft202012Validator(json.loads((REPOSITORY / "schemas" / "check.schema.json").read_text())).validate(
        document
    )


def test_the_document_has_the_fields_of_the_contract(planner: Run, qwen: Path) -> None:
    result = planner("check", _plan(qwen, _scale(Q, 1.5), _scale(DOWN, 1.5), VOID), "--model", qwen, "--json")
    assert result.status == 3
    document = result.json
    _valid(document)
    assert document["accepted"] is False
    for problem in document["problems"]:
        assert set(problem) == {"modification", "code", "message", "hint"}
    assert [item["id"] for item in document["modifications"]] == ["m01", "m02", "m03"]
    assert document["plan_effect"] == "effective"
    for item in document["modifications"]:
        for tensor in item["tensors"]:
            assert {"name", "effect", "why", "changed_fraction", "realised_scale", "relative_change"} <= set(tensor)
            assert {"mean", "std", "min", "max"} <= set(tensor["before"])
            assert {"mean", "std", "min", "max"} <= set(tensor["after"])
    assert [item["tensors"][0]["effect"] for item in document["modifications"]] == ["invariant", "effective", "void"]
    assert "modification" not in result.err, "the table is not mixed with it"


def test_a_refused_document_is_valid_too(planner: Run, qwen: Path) -> None:
    plan = _plan(qwen, _scale("model.layers.3.mlp.down_prj.weight", 2), _scale(Q, 1e39))
    result = planner("check", plan, "--model", qwen, "--json")
    assert result.status == 3
    _valid(result.json)
    assert [problem["code"] for problem in result.json["problems"]] == ["unknown-target", "not-finite"]
    assert "nearest: model.layers.3.mlp.down_proj.weight" in result.json["problems"][0]["hint"]


def test_how_it_ends(planner: Run, qwen: Path, tmp_path: Path) -> None:
    good = _plan(qwen, _scale(DOWN, 1.1))
    before = {path.name: path.read_bytes() for path in qwen.iterdir()}
    accepted = planner("check", good, "--model", qwen)
    assert accepted.status == 0
    assert "accepted" in accepted.out.splitlines()[-1]
    assert f"next: planner review {good} --model {qwen}" in accepted.err
    assert planner("check", _plan(qwen, VOID), "--model", qwen).status == 3
    assert planner("check", _plan(qwen, VOID), "--model", qwen, "--allow-void").status == 0
    policy = tmp_path / "policy.toml"
    policy.write_text('refuse = ["invariant", "void"]\n')
    invariant = _plan(qwen, _scale(Q, 1.5))
    assert planner("check", invariant, "--model", qwen).status == 0
    refused = planner("check", invariant, "--model", qwen, "--policy", policy)
    assert refused.status == 3
    assert "m01: [outside-policy] its effect is invariant" in refused.out
    assert refused.out.splitlines()[-1] == "refused: 1 problem"
    document = json.loads(good.read_text())
    document["checkpoint"]["fingerprint"] = "blake3:" + "0" * 64
    good.write_text(json.dumps(document))
    stale = planner("check", good, "--model", qwen)
    assert stale.status == 4
    assert "[stale-plan]" in stale.out
    assert "|dW|/|W|" not in stale.out, "what it would do to another checkpoint is of no interest"
    assert {path.name: path.read_bytes() for path in qwen.iterdir()} == before


@pytest.mark.parametrize("width", [80, 120, 1000])
def test_people_see_what_changes_nothing_at_any_width(
    planner: Run, qwen: Path, narrow: Callable[[int], None], width: int
) -> None:
    narrow(width)
    plan = _plan(qwen, VOID, _scale(Q, 1.5), _scale(NORM, 1.01), _scale(DOWN, 1.5), _scale("lm_head.weight", 1.5))
    result = planner("check", plan, "--model", qwen, "--allow-void")
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= width
    order = [line.split()[0] for line in lines if line.startswith(" m0")]
    assert order == ["m04", "m03", "m05", "m02", "m01"], "the most consequential first"
    rows = {line.split()[0]: line for line in lines if line.startswith(" m0")}
    effects = {"m01": "VOID", "m02": "INVARIANT", "m03": "effective", "m04": "effective", "m05": "loader_dependent"}
    for name, effect in effects.items():
        assert f" {effect} " in rows[name], "whole, and on the first line of its row"
    assert "100.00%" in rows["m04"]
    assert ("1.50040" in rows["m04"]) == (width >= 120), "the realised scale, where there is room"
    text = " ".join(result.out.split())
    assert "invariant: m02 q_proj feeds q_norm, an RMSNorm per head; a positive factor cancels" in text
    assert "void: m01 computed from every stored element: no bit changes" in text
    assert "limits: all operations; nothing protected; a tensor changes by at most 1 of its norm" in text
    assert "2 of 5 modifications change nothing that the model computes" in text
    assert "warning: m05: model.embed_tokens.weight and lm_head.weight are two stored copies" in text
    assert (width < 1000) == ("left out, because the terminal is narrow" in result.err)


def test_reasons_that_differ_by_the_layer_are_one(planner: Run, qwen: Path) -> None:
    several = [_scale(f"model.layers.{n}.mlp.down_proj.weight", 1.5) for n in range(12)]
    result = planner("check", _plan(qwen, *several), "--model", qwen)
    assert result.out.count("what the MLP adds in layer N is multiplied by 1.5") == 1
    grouped = next(line for line in result.out.splitlines() if line.startswith("effective: "))
    assert grouped.endswith("(12 modifications)")
    assert "what the MLP adds in layer 3 is" in planner("check", _plan(qwen, several[3]), "--model", qwen).out


def test_many_tensors_are_listed_on_request(planner: Run, qwen: Path) -> None:
    plan = _plan(qwen, {"target": {"roles": ["up_proj"]}, "operation": {"kind": "scale", "factor": 1.5}})
    short = planner("check", plan, "--model", qwen).out
    assert "28 tensors" in short
    assert "... and 22 more (--all lists them)" in short
    assert short.count("mlp.up_proj.weight") == 6
    assert planner("check", plan, "--model", qwen, "--all").out.count("mlp.up_proj.weight") == 28


def test_what_was_meant_and_where_arrays_come_from_is_shown(planner: Run, tiny_model: Path) -> None:
    from safetensors.numpy import save_file

    vector = np.linspace(0.9, 1.1, 192, dtype="<f4")
    save_file({"f": vector}, tiny_model.parent / "f.safetensors", metadata={"made_by": "\x1b[31ma probe"})
    tokens = {"kind": "tokens", "texts": [" Lily"]}
    plan = _plan(
        tiny_model,
        {
            "target": {"tensors": ["model.embed_tokens.weight"], "elements": tokens},
            "operation": {"kind": "reduce", "alpha": 0.5},
        },
        {
            "target": {"tensors": ["model.layers.0.mlp.up_proj.weight"]},
            "operation": {"kind": "scale", "factor": {"file": "f.safetensors", "array": "f", "axis": "rows"}},
        },
    )
    result = planner("check", plan, "--model", tiny_model)
    assert result.status == 0
    assert "m01: token 379 is ' Lily'" in result.out
    assert "m02: f of f.safetensors, blake3:" in result.out
    assert "\x1b" not in result.out


def test_the_published_44_on_a_checkpoint_of_their_shape(planner: Run, qwen: Path, assets: Path) -> None:
    """18 scalings of q_proj are cancelled by q_norm; whether the head counts depends on the loader."""
    patches = assets / "tensor_slayer_44.json"
    if not patches.is_file():
        pytest.skip(f"no list at {patches}")
    plan, policy = qwen.parent / "plan.json", qwen.parent / "policy.toml"
    assert planner("import-patch", patches, "--model", qwen, "--out", plan).status == 0
    # The clamps were made for other numbers: two of them are void here, one is large.
    policy.write_text("largest_relative_change = 5.0\nrefuse = []\n")
    result = planner("check", plan, "--model", qwen, "--policy", policy, "--json")
    assert result.status == 0, result.out
    document = result.json
    _valid(document)
    given = json.loads(patches.read_text())
    found = {item["tensors"][0]["name"]: item for item in document["modifications"]}
    assert len(document["modifications"]) == len(found) == 44
    assert list(found) == [entry["tensor"] for entry in given]
    q = [item for name, item in found.items() if "q_proj" in name]
    assert [item["effect"] for item in q] == ["invariant"] * 18
    assert {item["why"] for item in q} == {
        "q_proj feeds q_norm, an RMSNorm per head; a positive factor cancels; left over: epsilon and rounding"
    }
    assert [name for name, item in found.items() if item["effect"] == "invariant" and "q_proj" not in name] == []
    head = found["lm_head.weight"]
    assert head["effect"] == "loader_dependent"
    assert "transformers before 5" in head["why"]
    assert "vLLM" in head["why"]
    assert sum(item["effect"] == "effective" for name, item in found.items() if "down_proj" in name) == 18
    (warning,) = document["warnings"]
    assert warning.startswith(
        "m01, m02: model.embed_tokens.weight and lm_head.weight are two stored copies of one tied"
    )
    assert {tensor["source"] for item in found.values() for tensor in item["tensors"]} == {"histogram"}
    shown = planner("check", plan, "--model", qwen, "--policy", policy).out
    assert shown.count("INVARIANT") == 18
    assert "(18 modifications)" in shown
