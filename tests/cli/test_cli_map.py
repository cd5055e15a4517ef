"""`planner map`: the architecture for people and for programs, known or not; no weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.tiny import build

from planner.checkpoint import Checkpoint

SCHEMA = Path(__file__).parents[2] / "schemas" / "map.schema.json"
Run = Callable[..., Any]


def _valid(document: Any) -> None:
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)


@pytest.mark.parametrize("key", ["llama", "phi3", "gpt2", "deepseek_v3", "qwen3-tied"])
def test_a_known_family(planner: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(Checkpoint, "chunks", _never)
    tiny = build(key)
    model = tiny.write(tmp_path / "model", "BF16")
    result = planner("map", model, "--json")
    assert result.status == 0
    _valid(result.json)
    document = result.json
    family = tiny.config["model_type"]
    assert (document["schema"], document["known"], document["family"]) == ("planner/map@1", True, family)
    assert {tensor["name"] for tensor in document["tensors"]} == set(tiny.tensors) - set(document["unread"])
    assert document["layers"] == 3
    shown = planner("map", model)
    assert shown.status == 0
    assert shown.out.startswith(f"model: {family}\n  3 layers, 32 channels, 64 tokens\n")
    for fact in document["facts"]:
        assert fact in shown.out


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("a weight was read")


def test_one_layer_of_each_kind_or_all(planner: Run, tmp_path: Path) -> None:
    model = build("qwen3_moe-dense").write(tmp_path / "model")
    short, every = planner("map", model).out, planner("map", model, "--all").out
    names = build("qwen3_moe-dense").tensors
    assert all(name in every for name in names)
    listed = [name for name in names if name in short]
    assert 0 < len(listed) < len(names)
    assert "model.layers.1.mlp.gate_proj.weight" in listed, "the one layer that is dense"
    assert "model.layers.0.mlp.experts.0.gate_proj.weight" in listed
    assert "model.layers.0.mlp.experts.1.gate_proj.weight" not in listed
    assert f"{len(names) - len(listed)} more tensors like these in other layers or experts (--all lists them)" in short
    assert "more tensors" not in every


def test_heads_and_streams_stand_beside_their_tensor(planner: Run, tmp_path: Path) -> None:
    out = planner("map", build("phi3").write(tmp_path / "model")).out
    row = next(line for line in out.splitlines() if "layers.0.self_attn.qkv_proj.weight" in line)
    assert row.split()[1:4] == ["query+key+value", "64x32", "reads"]
    assert "4 query heads in rows, 2 key heads in rows, 2 value heads in rows" in row
    down = next(line for line in out.splitlines() if "layers.0.mlp.down_proj.weight" in line)
    assert down.split()[1:4] == ["down", "32x48", "writes"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("key", ["llama", "phi3", "gemma2", "deepseek_v3", "falcon-new"])
def test_it_fits_a_terminal(
    planner: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, width: int
) -> None:
    model = build(key).write(tmp_path / "model")
    monkeypatch.setattr("planner.cli.console._PIPED_WIDTH", width)
    result = planner("map", model)
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= width
    shown = [line.split()[0] for line in lines if ".weight" in line and "x" in line]
    assert shown
    assert all(name in build(key).tensors for name in shown if name.startswith(("model.", "transformer.")))
    assert planner("map", model, "--json").json["known"], "JSON does not care"


def test_an_unknown_family_and_one_that_does_not_fit(planner: Run, tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    for changed, family, why in (
        ({"model_type": "something_new"}, None, "the model type 'something_new' has no declaration here"),
        ({"num_key_value_heads": 4}, "llama", "k_proj.weight is [16, 32]; its configuration asks for [32, 32]"),
        ({"model_type": None}, None, "config.json names no model_type"),
        ({"model_type": "\x1b[31mred"}, None, "has no declaration here"),
    ):
        (model / "config.json").write_text(json.dumps(config | changed))
        found = planner("map", model, "--json")
        assert found.status == 0
        _valid(found.json)
        assert (found.json["known"], found.json["family"], found.json["tensors"]) == (False, family, [])
        assert why in found.json["reason"]
        shown = planner("map", model)
        assert shown.out.startswith(f"model: {family or 'unknown family'}: ")
        assert why.split(" is [")[0] in shown.out
        assert "\x1b" not in shown.out


def test_what_is_not_read_is_said(planner: Run, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    model = build("llama").write(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    strange = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, "f4"), "extra.weight": np.ones(3, "f4")}
    save_file(weights | strange, model / "model.safetensors")
    document = planner("map", model, "--json").json
    assert document["known"]
    assert "extra.weight" in document["unmapped"] or "extra.weight" in document["unread"]
    for name in (*document["unread"], *document["unmapped"]):
        assert name in planner("map", model).out


def test_a_folder_that_is_no_checkpoint(planner: Run, tmp_path: Path) -> None:
    assert planner("map", tmp_path / "nowhere").status in (2, 9)
    assert planner("map", tmp_path, "--json").json["error"]["code"]
