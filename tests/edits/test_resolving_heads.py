"""Heads of attention: what transformers' own module computes when they are scaled, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from applied import changed, resolution, rewritten, stored, unresolved  # noqa: E402
from models.oracle import machine  # noqa: E402
from models.tiny import build, logits  # noqa: E402

FACTOR, LAYER = 0.25, 1
PARTS = ("query", "key", "value", "output")


def _interface(monkeypatch: pytest.MonkeyPatch, model: Any, part: str, heads: list[int], group: int) -> None:
    """The function that all newer families call with queries, keys and values: [batch, heads, tokens, width]."""
    module = next(m for m in model.modules() if getattr(m, "layer_idx", None) == LAYER and hasattr(m, "config"))
    names = module.forward.__func__.__globals__
    eager, index = names["eager_attention_forward"], {"query": 1, "key": 2, "value": 3}
    mine = heads if part in ("query", "output") else [head // group for head in heads]

    def scaled(*given: Any, **options: Any) -> Any:
        inputs = list(given)
        if inputs[0].layer_idx != LAYER:
            return eager(*inputs, **options)
        if part in index:
            inputs[index[part]] = inputs[index[part]].clone()
            inputs[index[part]][:, mine] *= FACTOR
        out, weights = eager(*inputs, **options)
        if part == "output":
            out = out.clone()
            out[:, :, mine] *= FACTOR
        return out, weights

    monkeypatch.setitem(names, "eager_attention_forward", scaled)


def _falcon(monkeypatch: pytest.MonkeyPatch, model: Any, part: str, heads: list[int], group: int) -> None:
    """Falcon splits its fused projection into heads in a method of its own: [batch, tokens, heads, width]."""
    attention = model.transformer.h[LAYER].self_attention
    split, dense, width = attention._split_heads, attention.dense.forward, attention.head_dim

    def scaled(fused: Any) -> Any:
        found = [x.clone() for x in split(fused)]
        mine = found[("query", "key", "value").index(part)]
        mine[:, :, heads if mine.shape[2] == attention.num_heads else [0]] *= FACTOR  # copies, or the one head
        return tuple(found)

    def shrunk(x: Any) -> Any:
        x = x.clone().unflatten(-1, (-1, width))
        x[..., heads, :] *= FACTOR
        return dense(x.flatten(-2))

    if part == "output":
        monkeypatch.setattr(attention.dense, "forward", shrunk)
    else:
        monkeypatch.setattr(attention, "_split_heads", scaled)


SEPARATE = ["llama", "llama-bias", "llama-mqa", "llama-wide", "qwen2", "opt", "phi-gqa", "cohere"]
FUSED = ["phi3", "gpt2", "gpt_neox", "falcon", "falcon-new", "falcon-alibi", "deepseek_v2", "deepseek_v3-noqlora"]
GROUPS = {"llama": 2, "llama-bias": 2, "llama-wide": 2, "llama-mqa": 4, "qwen2": 2, "phi-gqa": 2, "cohere": 2}
GROUPS |= {"phi3": 2, "falcon": 4, "falcon-new": 2}


@pytest.mark.parametrize(
    ("key", "part"),
    # No head of a latent attention has a key of its own.
    [(key, part) for key in SEPARATE + FUSED for part in PARTS if not (key.startswith("deepseek") and part == "key")],
)
def test_the_named_heads_are_scaled_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, part: str
) -> None:
    tiny = build(key)
    model = tiny.write(tmp_path / "model", "F64")
    group = GROUPS.get(key, 1)
    heads = [2] if group == 1 or part in ("query", "output") else list(range(4))[-group:]
    operation = {"kind": "head_scale", "heads": ",".join(map(str, heads)), "factor": FACTOR, "part": part}
    result = rewritten(model, {"target": {"layers": str(LAYER)}, "operation": operation})
    found = logits(tiny, {name: values.numpy() for name, values in result.items()})
    before = logits(tiny, {})
    with monkeypatch.context() as patched:
        hook = _falcon if key.startswith("falcon") else _interface
        hook(patched, machine(key).model, part, heads, group)
        wanted = logits(tiny, {})
    assert np.abs(wanted - before).max() > 1e-3, "the hook does something"
    assert np.abs(found - wanted).max() < 1e-9


def test_part_of_a_group_is_an_error_that_names_the_heads(tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model")
    for part in ("key", "value"):
        for target in ({"layers": "1"}, {"roles": ["k_proj", "v_proj"], "layers": "1"}):
            operation = {"kind": "head_scale", "heads": "0-2", "factor": 2, "part": part}
            error = unresolved(model, {"target": target, "operation": operation})
            assert str(error) == f"query heads 2-3 of layer 1 share one {part} head, and not all of them are named"
            assert error.hint == "name 2-3 together, or scale their output: part output"
    error = unresolved(
        model, {"target": {"layers": "1"}, "operation": {"kind": "head_scale", "heads": "4", "factor": 2}}
    )
    assert "no 4 among the query heads of layer 1" in str(error)


def test_the_keys_of_a_latent_attention_belong_to_all_heads(tmp_path: Path) -> None:
    model = build("deepseek_v2").write(tmp_path / "model")
    operation = {"kind": "head_scale", "heads": "0", "factor": 2, "part": "key"}
    error = unresolved(model, {"target": {"layers": "1"}, "operation": operation})
    assert "all heads of layer 1 share one part of their keys" in str(error)
    assert "query" in error.hint


def test_heads_are_query_heads_whatever_the_target_names(tmp_path: Path) -> None:
    """k_proj by itself has two heads; heads 2 and 3 of the queries are its second one."""
    model = build("llama").write(tmp_path / "model")
    operation = {"kind": "head_scale", "heads": "2,3", "factor": 2.0, "part": "key"}
    result = rewritten(model, {"target": {"roles": ["k_proj"], "layers": "0"}, "operation": operation})
    name = "model.layers.0.self_attn.k_proj.weight"
    assert changed(stored(model), result) == {name}
    before, after = stored(model)[name], result[name]
    assert torch.equal(after[:8], before[:8])
    assert torch.equal(after[8:], before[8:] * 2)


def test_only_the_tensors_that_are_named_and_only_layers_that_have_some(tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model")
    operation = {"kind": "head_scale", "heads": "1", "factor": 2.0}
    names = ["model.layers.{0-2}.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"]
    error = unresolved(model, {"target": {"tensors": names}, "operation": operation})
    assert "no tensor of the target in layer 1 holds what head_scale (output) acts on" in str(error)
    assert list(resolution(model, {"target": {"tensors": names[1:]}, "operation": operation}).steps) == names[1:]
    error = unresolved(model, {"target": {"tensors": ["model.norm.weight"]}, "operation": operation})
    assert "no tensor of the target holds what head_scale (output) acts on" in str(error)
    assert '{"layers": "3"}' in error.hint
    whole = resolution(model, {"target": {"tensors": ["*"]}, "operation": operation})
    assert list(whole.steps) == [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(3)]


@pytest.mark.parametrize(
    ("operation", "role", "there"),
    [
        ({"kind": "head_scale", "heads": "1", "factor": 2.0}, "q_proj", "o_proj"),
        ({"kind": "head_scale", "heads": "1", "factor": 2.0, "part": "query"}, "o_proj", "q_proj"),
        (
            {"kind": "neuron_scale", "neurons": "1", "factor": 2.0, "part": "gate_and_up"},
            "o_proj",
            "gate_proj and up_proj",
        ),
        (
            {"kind": "channel_scale", "channels": "1", "factor": 2.0, "part": "writers"},
            "q_proj",
            "o_proj and down_proj",
        ),
    ],
)
def test_a_role_that_does_not_fit_is_answered_with_those_that_do(
    tmp_path: Path, operation: dict[str, object], role: str, there: str
) -> None:
    model = build("llama").write(tmp_path / "model")
    error = unresolved(model, {"target": {"roles": [role], "layers": "1"}, "operation": operation})
    assert error.hint == f"leave `roles` and `tensors` out and name layers alone, or name {there}"
    target = {"roles": there.split(" and "), "layers": "1"}
    assert resolution(model, {"target": target, "operation": operation}).steps, "the hint can be followed"
    assert resolution(model, {"target": {"layers": "1"}, "operation": operation}).steps


def test_an_unknown_family_is_told_what_needs_no_map(tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model")
    (model / "config.json").write_text(json.dumps({"model_type": "something_new"}))
    for operation in (
        {"kind": "head_scale", "heads": "1", "factor": 2.0},
        {"kind": "neuron_scale", "neurons": "1", "factor": 2.0},
        {"kind": "channel_scale", "channels": "1", "factor": 2.0},
    ):
        error = unresolved(model, {"target": {"layers": "1"}, "operation": operation})
        assert "'something_new' has no declaration here" in str(error)
        assert "`scale` on rows or columns" in error.hint


def test_elements_are_left_to_the_operation(tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model")
    target = {"layers": "1", "elements": {"kind": "rows", "indices": "0"}}
    error = unresolved(model, {"target": target, "operation": {"kind": "head_scale", "heads": "1", "factor": 2.0}})
    assert "head_scale finds its elements itself" in str(error)


@pytest.mark.parametrize("key", ["llama", "gpt2"])
def test_elements_by_head_are_the_rows_or_columns_of_that_tensor(tmp_path: Path, key: str) -> None:
    model = build(key).write(tmp_path / "model", "F64")
    if key == "llama":
        name, elements = "model.layers.1.self_attn.k_proj.weight", {"kind": "heads", "heads": "1"}
    else:
        name = "transformer.h.1.attn.c_attn.weight"
        elements = {"kind": "heads", "heads": "1", "part": "key"}
    result = rewritten(
        model,
        {"target": {"tensors": [name], "elements": elements}, "operation": {"kind": "scale", "factor": FACTOR}},
    )
    before, after = stored(model)[name], result[name]
    expected = before.clone()
    if key == "llama":
        expected[8:16] *= FACTOR
    else:
        expected[:, 32 + 8 : 32 + 16] *= FACTOR
    assert torch.equal(after, expected)
    if key == "gpt2":
        error = unresolved(
            model,
            {
                "target": {"tensors": [name], "elements": {"kind": "heads", "heads": "1"}},
                "operation": {"kind": "zero"},
            },
        )
        assert "holds heads of query, key, value" in str(error)
    error = unresolved(
        model, {"target": {"tensors": [name], "elements": elements | {"heads": "9"}}, "operation": {"kind": "zero"}}
    )
    assert "no 9 among the key heads" in str(error)
