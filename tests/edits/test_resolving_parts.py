"""Neurons of an MLP and channels of the residual stream: the tensors they are in, by what transformers computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from applied import changed, resolution, rewritten, stored, unresolved  # noqa: E402
from models.oracle import machine  # noqa: E402
from models.tiny import build, logits  # noqa: E402

NEURONS, FACTOR, LAYER = [3, 7, 8], 0.25, 1
DOWN = {
    "llama": "model.layers.1.mlp.down_proj",
    "llama-bias": "model.layers.1.mlp.down_proj",
    "phi3": "model.layers.1.mlp.down_proj",
    "gpt2": "transformer.h.1.mlp.c_proj",
    "gpt_neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.1.fc2",
    "phi": "model.layers.1.mlp.fc2",
}


def _named(text: str, **operation: Any) -> dict[str, Any]:
    return {"target": {"layers": text}, "operation": operation}


def _of(tiny: Any, model: Path, *modifications: dict[str, Any]) -> np.ndarray[Any, Any]:
    return logits(tiny, {name: values.numpy() for name, values in rewritten(model, *modifications).items()})


def _hooked(key: str, module: str, hook: Callable[..., Any]) -> np.ndarray[Any, Any]:
    """Logits of the unchanged model with a hook on what goes into one module."""
    tiny = build(key)
    logits(tiny, {})
    handle = machine(key).model.get_submodule(module).register_forward_pre_hook(hook)
    try:
        return logits(tiny, {})
    finally:
        handle.remove()


@pytest.mark.parametrize("key", DOWN)
def test_neurons_are_scaled_where_they_go_into_the_down_projection(tmp_path: Path, key: str) -> None:
    tiny = build(key)
    model = tiny.write(tmp_path / "model", "F64")

    def shrunk(module: Any, inputs: Any) -> Any:
        x = inputs[0].clone()
        x[..., NEURONS] *= FACTOR
        return (x,)

    found = _of(tiny, model, _named("1", kind="neuron_scale", neurons="3,7-8", factor=FACTOR))
    wanted = _hooked(key, DOWN[key], shrunk)
    assert np.abs(wanted - logits(tiny, {})).max() > 1e-3
    assert np.abs(found - wanted).max() < 1e-9


@pytest.mark.parametrize("key", ["llama-bias", "phi3", "llama"])
def test_up_of_a_gated_mlp_scales_the_same_neurons(tmp_path: Path, key: str) -> None:
    """(act(g) · f·u) = f · (act(g) · u): so `up` and `down` are one, biases and fused halves included."""
    tiny = build(key)
    model = tiny.write(tmp_path / "model", "F64")
    up, down = (
        _of(tiny, model, _named("1", kind="neuron_scale", neurons="3,7-8", factor=FACTOR, part=part))
        for part in ("up", "down")
    )
    assert np.abs(up - down).max() < 1e-9


@pytest.mark.parametrize("key", ["phi", "gpt2", "opt", "gpt_neox"])
def test_up_of_a_plain_mlp_scales_what_goes_into_the_activation(tmp_path: Path, key: str) -> None:
    tiny = build(key)
    model = tiny.write(tmp_path / "model", "F64")
    up = {
        "phi": "model.layers.1.mlp.fc1",
        "gpt2": "transformer.h.1.mlp.c_fc",
        "opt": "model.decoder.layers.1.fc1",
        "gpt_neox": "gpt_neox.layers.1.mlp.dense_h_to_4h",
    }[key]
    module = machine(key).model.get_submodule(up)

    def shrunk(_: Any, __: Any, out: Any) -> Any:
        out = out.clone()
        out[..., NEURONS] *= FACTOR
        return out

    found = _of(tiny, model, _named("1", kind="neuron_scale", neurons="3,7-8", factor=FACTOR, part="up"))
    handle = module.register_forward_hook(shrunk)
    try:
        wanted = logits(tiny, {})
    finally:
        handle.remove()
    assert np.abs(found - wanted).max() < 1e-9
    assert np.abs(wanted - logits(tiny, {})).max() > 1e-3
    error = unresolved(model, _named("1", kind="neuron_scale", neurons="3", factor=2, part="gate_and_up"))
    assert str(error) == "the MLP of layer 1 has no gate"


@pytest.mark.parametrize("key", ["llama-bias", "phi3"])
def test_gate_and_up_are_rows_of_both(tmp_path: Path, key: str) -> None:
    model = build(key).write(tmp_path / "model")
    before = stored(model)
    after = rewritten(model, _named("1", kind="neuron_scale", neurons="3,7-8", factor=FACTOR, part="gate_and_up"))
    inner = 48
    names = {
        "llama-bias": {f"model.layers.1.mlp.{p}_proj.{kind}": 0 for p in ("gate", "up") for kind in ("weight", "bias")},
        "phi3": {"model.layers.1.mlp.gate_up_proj.weight": inner},
    }[key]
    assert changed(before, after) == set(names)
    for name, second in names.items():
        expected = before[name].clone()
        expected[NEURONS] *= FACTOR
        if second:
            expected[[second + neuron for neuron in NEURONS]] *= FACTOR
        assert torch.equal(after[name], expected)


@pytest.mark.parametrize("key", ["mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v2"])
def test_neurons_of_several_experts_are_ambiguous(tmp_path: Path, key: str) -> None:
    tiny = build(key)
    model = tiny.write(tmp_path / "model", "F64")
    error = unresolved(model, _named("1", kind="neuron_scale", neurons="3", factor=2))
    assert "layer 1 has 4 experts, each with neurons of its own" in str(error)
    name = next(n for n in stored(model) if ".layers.1." in n and ".experts.2." in n and ("w2" in n or "down" in n))
    one = {"target": {"tensors": [name]}, "operation": {"kind": "neuron_scale", "neurons": "3", "factor": 2.0}}
    expected = stored(model)[name].clone()
    expected[:, 3] *= 2
    after = rewritten(model, one)
    assert changed(stored(model), after) == {name}
    assert torch.equal(after[name], expected)


@pytest.mark.parametrize("key", ["llama-bias", "gpt2", "gpt_neox", "phi3", "mixtral", "deepseek_v2"])
def test_writers_of_a_channel_write_it_scaled(tmp_path: Path, key: str) -> None:
    """What both halves of a block add to the stream, with their biases."""
    tiny = build(key)
    model = tiny.write(tmp_path / "model", "F64")
    found = _of(tiny, model, _named("1", kind="channel_scale", channels="3,7-8", factor=FACTOR))
    whole = machine(key).model
    blocks = {"gpt2": "transformer.h.1", "gpt_neox": "gpt_neox.layers.1"}
    block = whole.get_submodule(blocks.get(key, "model.layers.1"))
    halves = {"gpt2": ("attn", "mlp"), "gpt_neox": ("attention", "mlp")}.get(key, ("self_attn", "mlp"))

    def shrunk(_: Any, __: Any, out: Any) -> Any:
        first = (out[0] if isinstance(out, tuple) else out).clone()
        first[..., NEURONS] *= FACTOR
        return (first, *out[1:]) if isinstance(out, tuple) else first

    logits(tiny, {})
    handles = [block.get_submodule(half).register_forward_hook(shrunk) for half in halves]
    try:
        wanted = logits(tiny, {})
    finally:
        for handle in handles:
            handle.remove()
    assert np.abs(wanted - logits(tiny, {})).max() > 1e-3
    assert np.abs(found - wanted).max() < 1e-9


@pytest.mark.parametrize("key", ["llama-bias", "gpt2", "gpt_neox", "phi3", "mixtral", "deepseek_v3"])
def test_readers_of_a_channel_see_it_scaled(tmp_path: Path, key: str) -> None:
    """What the norms of a block put out goes to its readers; scaled there, all of them see it so."""
    tiny = build(key)
    model = tiny.write(tmp_path / "model", "F64")
    found = _of(tiny, model, _named("1", kind="channel_scale", channels="3,7-8", factor=FACTOR, part="readers"))
    blocks = {"gpt2": "transformer.h.1", "gpt_neox": "gpt_neox.layers.1"}
    block = machine(key).model.get_submodule(blocks.get(key, "model.layers.1"))
    norms = {"gpt2": ("ln_1", "ln_2")}.get(key, ("input_layernorm", "post_attention_layernorm"))

    def shrunk(_: Any, __: Any, out: Any) -> Any:
        out = out.clone()
        out[..., NEURONS] *= FACTOR
        return out

    logits(tiny, {})
    handles = [block.get_submodule(norm).register_forward_hook(shrunk) for norm in norms]
    try:
        wanted = logits(tiny, {})
    finally:
        for handle in handles:
            handle.remove()
    assert np.abs(wanted - logits(tiny, {})).max() > 1e-3
    assert np.abs(found - wanted).max() < 1e-9


def test_channels_of_tensors_in_layers_and_in_none_together(tmp_path: Path) -> None:
    """The embedding writes to the stream too, and is not forgotten beside a layer's tensors."""
    model = build("llama").write(tmp_path / "model")
    names = ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight"]
    before = stored(model)
    after = rewritten(
        model,
        {
            "target": {"tensors": names},
            "operation": {"kind": "channel_scale", "channels": "5", "factor": 3.0},
        },
    )
    assert changed(before, after) == set(names)
    assert torch.equal(after[names[0]][:, 5], before[names[0]][:, 5] * 3)
    assert torch.equal(after[names[1]][5], before[names[1]][5] * 3)
    assert torch.equal(after[names[1]][6], before[names[1]][6])
    error = unresolved(model, _named("1", kind="channel_scale", channels="32", factor=2))
    assert "no 32 among the channels of the residual stream" in str(error)
    ramp = {"kind": "channel_scale", "channels": "5", "factor": {"ramp": [1, 2]}}
    error = unresolved(model, {"target": {"tensors": names}, "operation": ramp})
    assert "model.embed_tokens.weight is in none" in str(error)


@pytest.mark.parametrize("kind", ["head_scale", "neuron_scale", "channel_scale", "scale"])
def test_a_ramp_is_the_same_as_a_modification_a_layer(tmp_path: Path, kind: str) -> None:
    model = build("qwen2").write(tmp_path / "model")
    named = {"head_scale": "heads", "neuron_scale": "neurons", "channel_scale": "channels"}
    given = {named[kind]: "1,2"} if kind in named else {}

    def of(layers: str, factor: Any) -> dict[str, Any]:
        target: dict[str, Any] = {"layers": layers} if kind in named else {"layers": layers, "roles": ["v_proj"]}
        return {"target": target, "operation": {"kind": kind, **given, "factor": factor}}

    ramped = rewritten(model, of("0-2", {"ramp": [0.8, 1.3]}))
    by_hand = rewritten(model, of("0", 0.8), of("1", 0.5 * 0.8 + 0.5 * 1.3), of("2", 1.3))
    assert changed(ramped, by_hand) == set()
    assert changed(stored(model), ramped)
    # The depth is that of the layers that are named: 1 and 2 are the ends.
    ends = rewritten(model, of("1-2", {"ramp": [0.8, 1.3]}))
    assert changed(ends, rewritten(model, of("1", 0.8), of("2", 1.3))) == set()
    # One layer alone is the first.
    alone = rewritten(model, of("2", {"ramp": [0.8, 1.3]}))
    assert changed(alone, rewritten(model, of("2", 0.8))) == set()


def test_a_ramp_is_over_layers_only_and_must_make_sense_in_each(tmp_path: Path) -> None:
    model = build("llama").write(tmp_path / "model")
    ramp = {"kind": "scale", "factor": {"ramp": [0.8, 1.2]}}
    names = ["model.layers.{0-2}.mlp.up_proj.weight", "model.norm.weight"]
    error = unresolved(model, {"target": {"tensors": names}, "operation": ramp})
    assert str(error) == "a ramp goes over layers, and model.norm.weight is in none"
    crossing = {"kind": "clamp", "minimum": {"ramp": [-1, 5, -1]}, "maximum": {"ramp": [1, 2]}}
    error = unresolved(model, {"target": {"tensors": names[:1]}, "operation": crossing})
    assert "at model.layers.1.mlp.up_proj.weight: the minimum 5.0 is above the maximum 1.5" in str(error)
    assert len(resolution(model, {"target": {"tensors": names[:1]}, "operation": ramp}).steps) == 3
