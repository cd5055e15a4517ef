"""Families with fused, biased, parallel or LayerNorm blocks: what the map says against what transformers computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from architecture.dataflow import Constants, evaluate  # noqa: E402
from architecture.layered_families import KEYS, mapped, more_families  # noqa: E402
from models.oracle import all_double, machine, token_ids  # noqa: E402
from models.tiny import Tiny, build, logits  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.models.bloom.modeling_bloom import bloom_gelu_forward  # noqa: E402

from planner.architecture.graph import Attend, Clip, Normalize, Sum  # noqa: E402


@pytest.fixture(autouse=True)
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    more_families(monkeypatch)


def constants(tiny: Tiny) -> Constants:
    config, kind = tiny.config, tiny.config["model_type"]
    curve = next((config[key] for key in ("hidden_act", "activation_function", "activation") if key in config), "gelu")
    slope = {"bloom": 1.0, "mpt": 1.0}.get(kind, 0.0)
    if kind == "falcon" and config["alibi"]:
        # In eager mode transformers adds it twice, once with the mask.
        slope = 2 * (config["hidden_size"] // config["num_attention_heads"]) ** -0.5
    return Constants(
        gelu=bloom_gelu_forward if kind == "bloom" else ACT2FN[curve],
        theta=(config.get("rope_parameters") or {}).get("rope_theta", 10000.0),
        alibi=slope,
        first_position=2 if kind == "opt" else 0,
        clip=(config.get("attn_config") or {}).get("clip_qkv") or 0.0,
        logits=config.get("logit_scale") or 1.0,
        window=config["sliding_window"] if kind == "cohere2" else None,
    )


@pytest.mark.parametrize("key", KEYS)
def test_the_graph_computes_the_logits_of_transformers(key: str) -> None:
    tiny = build(key)
    found = mapped(tiny)
    with torch.no_grad(), all_double():
        ours = np.concatenate([evaluate(found, tiny.tensors, ids, constants(tiny)) for ids in token_ids()])
    theirs = logits(tiny, {}, tiny_eps=True)
    assert np.abs(ours - theirs).max() < 1e-11 * np.abs(theirs).max()


@pytest.mark.parametrize("key", KEYS)
def test_every_stored_tensor_has_a_place(key: str) -> None:
    tiny = build(key)
    found = mapped(tiny)
    assert set(found.parameters) == set(tiny.tensors)
    assert not found.unmapped
    assert not found.unread
    assert not found.read_elsewhere
    assert found.tied == tiny.tied
    assert found.embedding == tiny.input
    assert found.head == (None if tiny.tied else tiny.output)
    assert found.graph is not None
    assert set(found.graph.readers) == set(tiny.tensors)


def test_a_stored_copy_of_a_tied_head_is_the_head() -> None:
    tied = [key for key in KEYS if build(key).tied]
    assert len(tied) > 20
    for key in tied:
        tiny = build(key, with_copy=True)
        found = mapped(tiny)
        assert found.head == tiny.output
        assert found.tied


def zeroed(tiny: Tiny, name: str, axis: str, lines: np.ndarray) -> dict[str, np.ndarray]:
    array = tiny.tensors[name].copy()
    array[(lines,) if axis == "rows" else (..., lines)] = 0
    return {name: array}


_UNEDITED: dict[tuple[str, str], np.ndarray] = {}


def seen_at(key: str, tensor: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """What transformers' own module with this weight is given, [positions, channels]."""
    built = machine(key)
    caught: list[Any] = []
    module = built.model.get_submodule(tensor.removesuffix(".weight"))
    hook = module.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        built.hold(tensors)
        built.run()
    finally:
        hook.remove()
    return caught[0].reshape(-1, caught[0].shape[-1]).numpy().copy()


def changed(key: str, tensor: str, tiny: Tiny, edits: dict[str, np.ndarray]) -> set[int]:
    head = {tiny.output: tiny.tensors[tiny.input]} if tiny.tied else {}
    if (key, tensor) not in _UNEDITED:
        _UNEDITED[key, tensor] = seen_at(key, tensor, {**head, **tiny.tensors})
    before, after = _UNEDITED[key, tensor], seen_at(key, tensor, {**head, **tiny.tensors, **edits})
    return set(np.flatnonzero(np.abs(after - before).max(axis=0) > 1e-9).tolist())


@pytest.mark.parametrize("key", KEYS)
def test_the_band_of_a_head_holds_that_head(key: str) -> None:
    tiny = build(key)
    found = mapped(tiny)
    (output,) = found.in_layer(1, "output")
    (mixture,) = output.bands
    attend = next(node for node in found.graph or () if isinstance(node, Attend) and node.layer == 1)
    shared = attend.heads // attend.key_value_heads
    parts = [one for one in found.in_layer(1) if one.part in {"query", "key", "value", "query+key+value"}]
    bands = [(one.name, band) for one in parts for band in one.bands]
    assert sorted(band.part for _, band in bands) == ["key", "query", "value"]
    for name, band in bands:
        per = 1 if band.part == "query" else shared
        for head in {0, len(band.indices) - 1}:
            expected = set(mixture.indices[head * per : (head + 1) * per].reshape(-1).tolist())
            edits = zeroed(tiny, name, band.axis, band.indices[head])
            assert changed(key, output.name, tiny, edits) == expected, (name, band.part, head)


@pytest.mark.parametrize("key", KEYS)
def test_the_band_of_a_neuron_holds_that_neuron(key: str) -> None:
    tiny = build(key)
    found = mapped(tiny)
    (down,) = found.in_layer(1, "down")
    (inside,) = down.bands
    for one in found.in_layer(1, "gate", "up", "gate+up"):
        for band in one.bands:
            assert len(band.indices) == len(inside.indices)
            for neuron in (0, len(band.indices) - 1):
                edits = zeroed(tiny, one.name, band.axis, band.indices[neuron])
                assert changed(key, down.name, tiny, edits) == set(inside.indices[neuron].tolist()), one.name


@pytest.mark.parametrize("key", KEYS)
def test_readers_and_writers_of_the_stream_have_its_size_along_the_axis_named(key: str) -> None:
    tiny = build(key)
    found = mapped(tiny)
    assert found.decoder is not None
    for one in found.parameters.values():
        shape = tiny.tensors[one.name].shape
        for axis in (one.reads, one.writes):
            if axis is not None:
                assert shape[0 if axis == "rows" and len(shape) == 2 else -1] == found.decoder.width, one.name
    reading = {one.part for one in found.parameters.values() if one.reads and one.layer == 1}
    writing = {one.part.removesuffix(".bias") for one in found.parameters.values() if one.writes and one.layer == 1}
    assert writing == {"output", "down"}
    assert reading <= {"query", "key", "value", "query+key+value", "gate", "up", "gate+up"}
    assert {"query", "query+key+value"} & reading
    assert {"up", "gate+up"} & reading


@pytest.mark.parametrize("key", KEYS)
def test_a_bias_is_there_exactly_where_its_flag_says(key: str) -> None:
    tiny = build(key)
    found = mapped(tiny)
    for one in found.parameters.values():
        if one.bias_flag is not None:
            assert (one.bias in tiny.tensors) == tiny.config[one.bias_flag], one.name


@pytest.mark.parametrize("key", [key for key in KEYS if "bias" not in key])
def test_a_flag_that_is_turned_on_brings_the_biases_it_is_said_to_bring(key: str) -> None:
    """transformers builds the model with the flag on: the new tensors are the ones that the map named."""
    tiny = build(key)
    found = mapped(tiny)
    flags = {one.bias_flag for one in found.parameters.values() if one.bias_flag and not tiny.config[one.bias_flag]}
    for flag in flags:
        brought = set(machine(key, ((flag, True),)).places) - set(machine(key).places)
        named = {one.bias for one in found.parameters.values() if one.bias_flag == flag}
        assert brought == named


# Key, then per layer: normalisers, of them LayerNorms, of them (1 + w), and limits.
COUNTS = {
    "phi": (1, 1, 0, 0),
    "phi-qknorm": (3, 3, 0, 0),
    "phi3": (2, 0, 0, 0),
    "gpt2": (2, 2, 0, 0),
    "gpt_neox": (2, 2, 0, 0),
    "gpt_neox-sequential": (2, 2, 0, 0),
    "opt": (2, 2, 0, 0),
    "opt-post": (2, 2, 0, 0),
    "bloom": (2, 2, 0, 0),
    "bloom-residual": (2, 2, 0, 0),
    "falcon": (1, 1, 0, 0),
    "falcon-new": (2, 2, 0, 0),
    "falcon-new-onenorm": (1, 1, 0, 0),
    "falcon-alibi": (2, 2, 0, 0),
    "cohere": (1, 1, 0, 0),
    "cohere-qknorm": (3, 3, 0, 0),
    "cohere2": (1, 1, 0, 0),
    "starcoder2": (2, 2, 0, 0),
    "stablelm": (2, 2, 0, 0),
    "stablelm-qknorm": (8, 8, 0, 0),
    "stablelm-parallel": (1, 1, 0, 0),
    "glm": (2, 0, 0, 0),
    "glm4": (4, 0, 0, 0),
    "nemotron": (2, 2, 2, 0),
    "gpt_bigcode": (2, 2, 0, 0),
    "gptj": (1, 1, 0, 0),
    "mpt": (2, 2, 0, 0),
    "b-mpt-clip": (2, 2, 0, 3),
    "b-persimmon": (4, 4, 0, 0),
}


@pytest.mark.parametrize("key", COUNTS)
def test_a_block_has_the_nodes_of_its_code(key: str) -> None:
    found = mapped(build(key))
    nodes = [node for node in found.graph or () if node.layer == 1]
    norms = [node for node in nodes if isinstance(node, Normalize)]
    layered, shifted = (sum(node.kind == "layer" for node in norms), sum(node.one_plus for node in norms))
    assert (len(norms), layered, shifted, sum(isinstance(node, Clip) for node in nodes)) == COUNTS[key]
    assert sum(isinstance(node, Attend) for node in nodes) == 1
    assert sum(isinstance(node, Sum) and node.stream for node in nodes) == 2
