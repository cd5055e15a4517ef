"""The same families: names, older files and configurations, absent keys, and what is not declared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from architecture.layered_families import KEYS, described, mapped, more_families, shapes_of  # noqa: E402
from models.tiny import build  # noqa: E402

from planner.architecture.graph import Attend  # noqa: E402
from planner.architecture.mapping import map_of  # noqa: E402


@pytest.fixture(autouse=True)
def extra(monkeypatch: pytest.MonkeyPatch) -> None:
    more_families(monkeypatch)


# Key, then names inside layer 1 and what they are; and the planes of rotation of a head (of 8 channels).
PARTS: dict[str, dict[str, str]] = {
    "gpt2": {
        "attn.c_attn.weight": "query+key+value",
        "attn.c_attn.bias": "query+key+value.bias",
        "attn.c_proj.weight": "output",
        "ln_1.weight": "attention_norm",
        "ln_2.bias": "mlp_norm.bias",
        "mlp.c_fc.weight": "up",
        "mlp.c_proj.bias": "down.bias",
    },
    "glm4": {
        "input_layernorm.weight": "attention_norm",
        "post_self_attn_layernorm.weight": "attention_post_norm",
        "post_attention_layernorm.weight": "mlp_norm",
        "post_mlp_layernorm.weight": "mlp_post_norm",
        "self_attn.q_proj.bias": "query.bias",
        "mlp.gate_up_proj.weight": "gate+up",
    },
    "opt": {
        "self_attn_layer_norm.weight": "attention_norm",
        "final_layer_norm.weight": "mlp_norm",
        "fc1.weight": "up",
        "self_attn.out_proj.weight": "output",
    },
    "falcon-new": {
        "ln_attn.weight": "attention_norm",
        "ln_mlp.weight": "mlp_norm",
        "self_attention.query_key_value.weight": "query+key+value",
    },
    "cohere-qknorm": {"self_attn.q_norm.weight": "query_norm", "self_attn.k_norm.weight": "key_norm"},
    "stablelm-qknorm": {"self_attn.k_layernorm.norms.1.weight": "key_norm"},
    "phi-qknorm": {"self_attn.q_layernorm.bias": "query_norm.bias", "self_attn.dense.weight": "output"},
}
PLANES = {
    "phi": [(0, 2), (1, 3)],
    "phi3": [(0, 4), (1, 5), (2, 6), (3, 7)],
    "phi3-partial": [(0, 2), (1, 3)],
    "gpt_neox": [(0, 1)],
    "cohere": [(0, 1), (2, 3), (4, 5), (6, 7)],
    "glm4": [(0, 1), (2, 3)],
    "gptj": [(0, 1), (2, 3)],
    "gpt2": [],
    "opt": [],
    "bloom": [],
    "falcon-alibi": [],
    "cohere2": [],
}


# Key, then the key of config.json that gives a part its bias; a part that is not here has none or always one.
_ATTENTION, _SEPARATE = ("query", "key", "value", "output"), ("query", "key", "value")
FLAGS: dict[str, dict[str, str]] = {
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "bloom": {},
    "stablelm": dict.fromkeys(_SEPARATE, "use_qkv_bias"),
    "glm": dict.fromkeys(_SEPARATE, "attention_bias"),
    "glm4": dict.fromkeys(_SEPARATE, "attention_bias"),
    "cohere": dict.fromkeys(_ATTENTION, "attention_bias"),
    "cohere2": dict.fromkeys(_ATTENTION, "attention_bias"),
    "nemotron": dict.fromkeys(_ATTENTION, "attention_bias") | dict.fromkeys(("up", "down"), "mlp_bias"),
    "starcoder2": dict.fromkeys((*_ATTENTION, "up", "down"), "use_bias"),
    "opt": dict.fromkeys((*_ATTENTION, "up", "down"), "enable_bias"),
    "gpt_neox": dict.fromkeys(("query+key+value", "output"), "attention_bias"),
    "falcon": dict.fromkeys(("query+key+value", "output", "up", "down"), "bias"),
}


@pytest.mark.parametrize("key", FLAGS)
def test_the_flags_that_give_biases(key: str) -> None:
    layer = mapped(build(key)).in_layer(1)
    assert {one.part: one.bias_flag for one in layer if one.bias_flag is not None} == FLAGS[key]


@pytest.mark.parametrize("key", PARTS)
def test_parts_are_what_a_reader_of_the_code_calls_them(key: str) -> None:
    found = mapped(build(key))
    for name, part in PARTS[key].items():
        places = [one for one in found.parameters.values() if one.layer == 1 and one.name.endswith(f".1.{name}")]
        assert [one.part for one in places] == [part], name


@pytest.mark.parametrize("key", PLANES)
def test_planes_of_rotation(key: str) -> None:
    attend = next(node for node in mapped(build(key)).graph or () if isinstance(node, Attend) and node.layer == 1)
    assert [tuple(pair) for pair in attend.planes.tolist()] == PLANES[key]


@pytest.mark.parametrize("key", KEYS)
def test_an_absent_key_means_what_the_configuration_class_says(key: str) -> None:
    """Each key is left out in turn; transformers' class fills it in, and the two must give the same graph."""
    tiny = build(key)
    known = 0
    for absent in tiny.config:
        if absent == "model_type":
            continue
        short = {k: v for k, v in tiny.config.items() if k != absent}
        found = map_of(short, shapes_of(tiny))
        if not found.known:
            continue
        known += 1
        full = transformers.CONFIG_MAPPING[tiny.config["model_type"]](**_copied(short)).to_dict()
        expected = map_of(full | {"model_type": tiny.config["model_type"]}, shapes_of(tiny))
        assert expected.known, (absent, expected.reason)
        assert described(found) == described(expected), absent
    assert known > len(tiny.config) / 2


def _copied(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers writes into the objects it is given."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}


def older(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration as releases before transformers 5 wrote it."""
    rest = {key: value for key, value in config.items() if key != "rope_parameters"}
    rope = config["rope_parameters"]
    name = "rotary_pct" if config["model_type"] == "gpt_neox" else "partial_rotary_factor"
    outside = {name: rope["partial_rotary_factor"]} if "partial_rotary_factor" in rope else {}
    yield rest | outside | {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    yield rest | outside | {"rope_scaling": {"type": "linear", "factor": 2.0}}


def test_rotary_positions_are_read_where_older_files_have_them() -> None:
    keyed = [key for key in KEYS if build(key).config.get("rope_parameters")]
    assert len(keyed) > 20
    for tiny in map(build, keyed):
        for config in older(tiny.config):
            assert described(map_of(config, shapes_of(tiny))) == described(mapped(tiny)), tiny.key


@pytest.mark.parametrize("key", ["gpt2", "bloom", "falcon", "opt", "gpt_bigcode", "mpt", "cohere", "starcoder2"])
def test_a_base_model_saved_alone_lacks_the_prefix(key: str) -> None:
    tiny = build(key)
    prefix = tiny.input.removesuffix({"opt": "embed_tokens.weight"}.get(key, tiny.input.rsplit(".", 2)[1] + ".weight"))
    bare = {name.removeprefix(prefix): shape for name, shape in shapes_of(tiny).items()}
    found = map_of(tiny.config, bare)
    assert found.known, found.reason
    assert set(found.parameters) == set(bare)
    assert Counter(one.part for one in found.parameters.values()) == Counter(
        one.part for one in mapped(tiny).parameters.values()
    )


def test_the_decoder_of_opt_saved_alone() -> None:
    tiny = build("opt")
    found = map_of(tiny.config, {name.removeprefix("model."): shape for name, shape in shapes_of(tiny).items()})
    assert found.known
    assert found.embedding == "decoder.embed_tokens.weight"


def test_the_head_of_gpt_neox_under_its_name_in_memory() -> None:
    tiny = build("gpt_neox")
    shapes = {"lm_head.weight" if name == tiny.output else name: shape for name, shape in shapes_of(tiny).items()}
    found = map_of(tiny.config, shapes)
    assert found.known
    assert found.head == "lm_head.weight"
    assert not found.unmapped


@pytest.mark.parametrize(
    ("key", "buffer", "shape"),
    [
        ("gpt2", "transformer.h.1.attn.bias", (1, 1, 40, 40)),
        ("gpt2", "transformer.h.1.attn.masked_bias", ()),
        ("gpt_neox", "gpt_neox.layers.1.attention.bias", (1, 1, 64, 64)),
        ("gpt_neox", "gpt_neox.layers.1.attention.rotary_emb.inv_freq", (1,)),
        ("gptj", "transformer.h.1.attn.bias", (1, 1, 64, 64)),
        ("phi", "model.layers.1.self_attn.rotary_emb.inv_freq", (2,)),
        ("falcon", "transformer.h.1.self_attention.rotary_emb.inv_freq", (4,)),
    ],
)
def test_buffers_of_old_files_are_read_by_nobody(key: str, buffer: str, shape: tuple[int, ...]) -> None:
    tiny = build(key)
    found = map_of(tiny.config, shapes_of(tiny) | {buffer: shape})
    assert found.known
    assert list(found.unread) == [buffer]
    assert not found.unmapped


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("gpt2", {"add_cross_attention": True}),
        ("gpt2", {"n_head": 5}),
        ("gpt2", {"n_head": 4, "num_attention_heads": 2}),
        ("gpt_bigcode", {"add_cross_attention": True}),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}),
        ("bloom", {"n_embed": 64}),
        ("falcon-new", {"parallel_attn": False}),
        ("falcon-new", {"parallel_attn": None}),
        ("falcon-new", {"num_ln_in_parallel_attn": 3}),
        ("falcon", {"num_ln_in_parallel_attn": 2}),
        ("falcon", {"multi_query": None}),
        ("falcon-alibi", {"num_kv_heads": 2}),
        ("falcon", {"partial_rotary_factor": 0.5}),
        ("cohere", {"partial_rotary_factor": 0.5}),
        ("starcoder2", {"partial_rotary_factor": 0.5}),
        ("starcoder2", {"use_bias": 1}),
        ("cohere2", {"partial_rotary_factor": 0.5}),
        ("cohere2", {"layer_types": ["full_attention"]}),
        ("cohere2", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
        ("cohere2", {"layer_types": 3}),
        ("cohere2", {"sliding_window": None}),
        ("cohere2", {"layer_types": [[], {}, 1]}),
        ("phi", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}),
        ("phi", {"rope_parameters": {"partial_rotary_factor": float("nan")}}),
        ("phi", {"rope_parameters": {"partial_rotary_factor": 2}}),
        ("phi", {"rope_parameters": {"partial_rotary_factor": 0.4}}),
        ("phi", {"rope_parameters": [1]}),
        ("phi", {"head_dim": 16}),
        ("phi-qknorm", {"qk_layernorm": "yes"}),
        ("stablelm", {"head_dim": 16}),
        ("stablelm", {"num_key_value_heads": 3}),
        ("gptj", {"rotary_dim": None}),
        ("gptj", {"rotary_dim": 16}),
        ("mpt", {"no_bias": False}),
        ("mpt", {"attn_config": {"qk_ln": True}}),
        ("mpt", {"attn_config": {"alibi": False}}),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}),
        ("mpt", {"attn_config": "none"}),
        ("opt", {"do_layer_norm_before": 0}),
    ],
)
def test_what_is_not_declared_is_unknown(key: str, changes: dict[str, Any]) -> None:
    tiny = build(key)
    found = map_of(tiny.config | changes, shapes_of(tiny)) if "partial_rotary_factor" not in changes else None
    if found is None:
        rope = tiny.config["rope_parameters"] | changes
        found = map_of(tiny.config | {"rope_parameters": rope}, shapes_of(tiny))
    assert not found.known
    assert found.reason
    assert found.family == tiny.config["model_type"]
