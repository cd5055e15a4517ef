"""The declared families say what transformers computes: computed in numpy, a graph gives transformers' own logits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from architecture.graph_arithmetic import arithmetic
from models.families import FAMILIES
from models.families import Family as TinyFamily

from planner.architecture import ModelMap, map_of, summary_of
from planner.architecture.graph import Activate, Attend, Lookup, Mix, Normalize, Route, Sum

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from models.oracle import config_of, machine  # noqa: E402
from models.tiny import Tiny, build, logits  # noqa: E402

MINE = {
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "granite"),
    *("smollm3", "deepseek_v2", "deepseek_v3", "olmo", "olmo2", "olmo3", "qwen2_moe", "olmoe", "helium", "ernie4_5"),
    *("arcee", "seed_oss"),
}
KEYS = [key for key, family in FAMILIES.items() if family.model_type in MINE]

# Flags and sizes beyond those of tests/models: (key of a tiny family, changes of its configuration).
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma-bias": ("gemma", {"attention_bias": True}),
    "gemma2-bias": ("gemma2", {"attention_bias": True}),
    "gemma3-capped": ("gemma3_text", {"attention_bias": True, "final_logit_softcapping": 5.0}),
    "smollm3-bias": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
    "smollm3-fourth": ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}),
    "olmo-bias": ("olmo", {"attention_bias": True}),
    "olmo2-bias": ("olmo2", {"attention_bias": True}),
    "olmoe-renormalised": ("olmoe", {"norm_topk_prob": True, "attention_bias": True}),
    "helium-bias": ("helium", {"attention_bias": True, "mlp_bias": True}),
    "arcee-bias": ("arcee", {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"}),
    "seed_oss-output": ("seed_oss", {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    "qwen2_moe-plain": ("qwen2_moe", {"qkv_bias": False, "mlp_only_layers": [0], "norm_topk_prob": True}),
    "deepseek_v2-bias": ("deepseek_v2", {"attention_bias": True, "mlp_bias": True}),
    "deepseek_v3-halves": ("deepseek_v3", {"rope_interleave": False, "norm_topk_prob": False}),
    "qwen3-window": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
}


@pytest.fixture(scope="module", autouse=True)
def more_families() -> Any:
    """The variants of `MORE`, known to the builders of tiny models for the length of this module."""
    for key, (base, changes) in MORE.items():
        family = FAMILIES[base]
        FAMILIES[key] = TinyFamily(family.model_type, {**family.arguments, **changes})
    yield
    for key in MORE:
        del FAMILIES[key]


def map_from(tiny: Tiny) -> ModelMap:
    return map_of(tiny.config, shapes_of(tiny))


def shapes_of(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in tiny.tensors.items()}


@pytest.mark.parametrize("key", [*KEYS, *MORE])
def test_a_graph_computes_what_transformers_computes(key: str) -> None:
    tiny = build(key)
    found = map_from(tiny)
    assert found.known, found.reason
    assert set(found.parameters) == set(tiny.tensors)
    assert (found.unmapped, found.unread, found.read_elsewhere) == ((), {}, {})
    assert found.tied == tiny.tied
    assert (found.embedding, found.head) == (tiny.input, None if tiny.tied else tiny.output)
    ids = machine(key).ids.numpy()
    expected = logits(tiny, {})
    ours = np.concatenate([arithmetic(found.graph, tiny.tensors, config_of(key), sequence) for sequence in ids])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


NORMS = {
    "usual": {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
    "sandwich": {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_post_norm",
        "pre_feedforward_layernorm": "mlp_norm",
        "post_feedforward_layernorm": "mlp_post_norm",
    },
    "after": {"post_attention_layernorm": "attention_post_norm", "post_feedforward_layernorm": "mlp_post_norm"},
}
PLACES = {
    **dict.fromkeys(("gemma2", "gemma3_text"), "sandwich"),
    **dict.fromkeys(("olmo2", "olmo3"), "after"),
}
ROLES = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "output",
    "q_norm": "query_norm",
    "k_norm": "key_norm",
    "q_a_proj": "query_down",
    "q_a_layernorm": "query_down_norm",
    "q_b_proj": "query",
    "kv_a_proj_with_mqa": "key_value_down",
    "kv_a_layernorm": "key_value_norm",
    "kv_b_proj": "key_value_up",
    "shared_expert_gate": "shared_gate",
    "w1": "gate",
    "w2": "down",
    "w3": "up",
    "gate": "router",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}


def part_expected(name: str, model_type: str) -> str:
    *path, role, leaf = name.split(".")
    if leaf == "e_score_correction_bias":
        return "router_correction"
    if "layers" not in path:
        return {"embed_tokens": "embedding", "norm": "final_norm", "lm_head": "head"}[role]
    norms = NORMS[PLACES.get(model_type, "usual")]
    within = "expert_" if "experts" in path else "shared_" if path[-1].startswith("shared_expert") else ""
    part = norms[role] if role in norms else within + ROLES[role]
    return part if leaf == "weight" else f"{part}.{leaf}"


@pytest.mark.parametrize("key", [*KEYS, *MORE])
def test_each_tensor_has_its_part_its_layer_and_the_stream_on_the_right_side(key: str) -> None:
    tiny = build(key)
    found = map_from(tiny)
    hidden = tiny.config["hidden_size"]
    readers = {"query", "key", "value", "query_down", "key_value_down", "gate", "up", "router", "head"}
    writers = {"output", "down", "embedding"}
    for name, parameter in found.parameters.items():
        part = part_expected(name.removeprefix("model."), FAMILIES[key].model_type)
        short = part.removeprefix("expert_").removeprefix("shared_").removesuffix(".bias")
        assert parameter.part == part, name
        words = name.split(".")
        assert parameter.layer == (int(words[words.index("layers") + 1]) if "layers" in words else None)
        assert parameter.expert == (int(words[words.index("experts") + 1]) if "experts" in words else None)
        axes = [side for side in (parameter.reads, parameter.writes) if side]
        shape = (1, *tiny.tensors[name].shape)[-2:]
        assert all(shape[("rows", "columns").index(side)] == hidden for side in axes), name
        reads = short in readers and not name.endswith("bias") and "q_b_proj" not in name
        assert (parameter.reads is not None, parameter.writes is not None) == (reads, short in writers), name


@pytest.mark.parametrize("key", [*KEYS, *MORE])
def test_the_nodes_of_a_layer_are_those_of_the_code(key: str) -> None:
    """As many normalisers as there are modules with a norm's name; 1 + w where the class of the module is Gemma's."""
    found = map_from(build(key))
    built = machine(key)
    for number, layer in enumerate(built.model.model.layers):
        nodes = [node for node in found.graph if node.layer == number]
        norms = [module for module in layer.modules() if "Norm" in type(module).__name__]
        assert sum(isinstance(node, Normalize) for node in nodes) == len(norms)
        assert sum(isinstance(node, Attend) for node in nodes) == 1
        assert sum(isinstance(node, Sum) and node.stream for node in nodes) == 2
        routers = sum("Router" in type(module).__name__ for module in layer.modules())
        assert [sum(isinstance(node, kind) for node in nodes) for kind in (Route, Mix)] == [routers, routers]
    assert sum(isinstance(node, Lookup) for node in found.graph) == 1
    for node in found.graph:
        if isinstance(node, Normalize) and node.weight is not None:
            owner = type(built.kinds[node.weight.tensor][0]).__name__
            assert node.one_plus == owner.startswith("Gemma")
            assert (node.kind == "rms", node.bias) == ("RMSNorm" in owner, None)


@pytest.mark.parametrize("key", ["llama", "llama-wide", "qwen2", "qwen3", "olmo2", "gemma3_text", "mixtral", "smollm3"])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_the_rows_of_a_head_are_that_heads_in_transformers_attention(key: str, part: str) -> None:
    """Zeroed rows of a head change what the first layer's heads give to its output where that head is read, only there.

    Where all heads are normalised at once a head acts on the others too; there the input of the norm is compared.
    """
    check_bands(key, part)


@pytest.mark.parametrize("key", ["deepseek_v2", "deepseek_v2-noqlora", "deepseek_v3"])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_the_rows_of_a_head_in_latent_attention(key: str, part: str) -> None:
    check_bands(key, part)


def check_bands(key: str, part: str) -> None:
    tiny = build(key)
    found = map_from(tiny)
    first = [(p.name, band) for p in found.parameters.values() if p.layer == 0 for band in p.bands]
    name, band = next((name, band) for name, band in first if band.part == part)
    output = next(p for p in found.in_layer(0, "output"))
    (heads,) = (b.indices for b in output.bands)
    assert all(b.axis == ("columns" if b.part == "output" else "rows") for b in (band, *output.bands))
    whole = key.startswith("olmo") and part != "value"
    where = f"{part[0]}_norm" if whole else "o_proj"
    before = heard(tiny, {}, key, where)
    shared = 1 if whole else len(heads) // len(band.indices)
    bias = found.parameters[name].bias
    for head, rows in enumerate(band.indices):
        values = tiny.tensors[name].copy()
        values[rows] = 0
        edits = {name: values}
        if bias in tiny.tensors:
            edits[bias] = tiny.tensors[bias].copy()
            edits[bias][rows] = 0
        after = heard(tiny, edits, key, where)
        moved = set(np.flatnonzero(np.abs(after - before).max(axis=0) > 1e-12))
        reading = band.indices[[head]] if whole else heads[head * shared : (head + 1) * shared]
        assert moved == set(reading.reshape(-1).tolist())


def heard(tiny: Tiny, edits: dict[str, Any], key: str, where: str) -> Any:
    """What goes into a module of the first layer's attention."""
    module = getattr(machine(key).model.model.layers[0].self_attn, where)
    caught = []
    handle = module.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach().numpy().copy()))
    try:
        logits(tiny, edits)
    finally:
        handle.remove()
    return caught[0].reshape(-1, caught[0].shape[-1])


@pytest.mark.parametrize("key", KEYS)
def test_an_absent_key_means_the_default_of_the_class(key: str) -> None:
    """Each key of config.json left out: the map is that of the configuration with the class's default, or unknown."""
    tiny = build(key)
    shapes = shapes_of(tiny)
    makes = type(config_of(key))
    unknown = 0
    for left_out in sorted(set(tiny.config) - {"model_type", "architectures"}):
        short = {name: value for name, value in tiny.config.items() if name != left_out}
        try:
            full = json.loads(makes(**short).to_json_string(use_diff=False))
        except Exception:  # noqa: BLE001
            continue  # transformers cannot read it either
        ours, theirs = map_of(short, shapes), map_of(full, shapes)
        unknown += not ours.known
        if ours.known:
            assert theirs.known, (left_out, theirs.reason)
            assert said(ours) == said(theirs), left_out
    assert unknown <= len(tiny.config) / 2


def said(found: ModelMap) -> list[Any]:
    """A graph as something to compare."""
    assert found.graph is not None
    fields = [(type(node), {n: getattr(node, n) for n in node.__slots__}) for node in found.graph]
    plain = [(k, {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in f.items()}) for k, f in fields]
    return [*plain, found.tied]


@pytest.mark.parametrize("model_type", sorted(MINE))
def test_tied_by_default_as_the_class_has_it(model_type: str) -> None:
    key = next(key for key in KEYS if FAMILIES[key].model_type == model_type)
    tiny = build(key)
    short = {name: value for name, value in tiny.config.items() if name != "tie_word_embeddings"}
    shapes = shapes_of(tiny) | {"lm_head.weight": (64, 32)}
    tied = transformers.CONFIG_MAPPING[model_type]().tie_word_embeddings
    assert map_of(short, shapes).tied is tied
    assert map_of(short | {"tie_word_embeddings": not tied}, shapes).tied is not tied


def test_biases_and_the_keys_that_decide_them() -> None:
    flags = {
        ("qwen2", "q_proj"): None,
        ("qwen3", "o_proj"): "attention_bias",
        ("llama", "up_proj"): "mlp_bias",
        ("helium", "k_proj"): "attention_bias",
        ("helium", "o_proj"): None,
        ("seed_oss", "o_proj"): "attention_out_bias",
        ("seed_oss", "q_proj"): "attention_bias",
        ("ernie4_5", "down_proj"): "use_bias",
        ("qwen2_moe", "q_proj"): "qkv_bias",
        ("qwen2_moe", "o_proj"): None,
        ("deepseek_v2", "q_a_proj"): "attention_bias",
        ("deepseek_v2", "q_b_proj"): None,
        ("mistral", "o_proj"): None,
    }
    for (key, role), flag in flags.items():
        found = map_from(build(key))
        parameter = next(p for p in found.parameters.values() if p.name.endswith(f".{role}.weight"))
        assert parameter.bias_flag == flag, (key, role)
        assert parameter.bias == parameter.name.removesuffix("weight") + "bias"


@pytest.mark.parametrize(
    ("key", "read", "ignored"),
    [("gemma2", "hidden_activation", "hidden_act"), ("gemma3_text", "hidden_activation", "hidden_act")]
    + [(key, "hidden_act", "hidden_activation") for key in ("llama", "gemma", "mixtral", "arcee")],
)
def test_the_activation_is_by_the_key_that_the_code_reads(key: str, read: str, ignored: str) -> None:
    tiny = build(key)
    found = map_of(tiny.config | {read: "tanh", ignored: "relu"}, shapes_of(tiny))
    assert {node.function for node in found.graph if isinstance(node, Activate)} == {"tanh"}


def test_a_base_model_saved_alone_is_known_without_the_prefix() -> None:
    tiny = build("gemma2")
    shapes = {name.removeprefix("model."): shape for name, shape in shapes_of(tiny).items()}
    found = map_of(tiny.config, shapes)
    assert found.known, found.reason
    assert set(found.parameters) == set(shapes)


def test_the_layers_for_more_tokens_are_read_elsewhere() -> None:
    tiny = build("deepseek_v3")
    extra = {"model.layers.3.eh_proj.weight": (32, 64), "model.layers.3.mlp.up_proj.weight": (48, 32)}
    found = map_of(tiny.config, shapes_of(tiny) | extra)
    assert set(found.read_elsewhere) == set(extra)
    assert not found.unmapped
    assert map_of(tiny.config | {"num_nextn_predict_layers": 0}, shapes_of(tiny) | extra).unmapped == tuple(extra)


NOT_MODELLED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"partial_rotary_factor": 0.5}),
    ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "default", "partial_rotary_factor": 0.5}}}),
    ("olmo3", {"rope_parameters": {"sliding_attention": {"rope_type": "proportional"}}}),
    ("gemma2", {"final_logit_softcapping": 0}),
    ("olmo", {"clip_qkv": -1.0}),
    ("smollm3", {"no_rope_layers": [1, 0]}),
    ("smollm3", {"no_rope_layers": [1, 0, 2]}),
    ("qwen3_moe", {"num_experts": 8}),
    ("mixtral", {"num_experts_per_tok": 5}),
    ("qwen2_moe", {"decoder_sparse_step": 0}),
    ("deepseek_v2", {"topk_method": "noaux_tc"}),
    ("deepseek_v2", {"scoring_func": "sigmoid"}),
    ("deepseek_v2", {"num_key_value_heads": 2}),
    ("deepseek_v2", {"moe_layer_freq": 2}),
    ("deepseek_v2-grouped", {"n_group": 3}),
    ("deepseek_v3", {"n_group": 8, "topk_group": 2}),
    ("deepseek_v3", {"topk_group": None}),
    ("deepseek_v3", {"num_nextn_predict_layers": 1e9}),
    ("llama", {"num_key_value_heads": 3}),
]


@pytest.mark.parametrize(("key", "changes"), NOT_MODELLED, ids=lambda value: str(value)[:60])
def test_what_is_not_declared_is_unknown_and_says_why(key: str, changes: dict[str, Any]) -> None:
    tiny = build(key)
    assert map_from(tiny).known
    found = map_of(tiny.config | changes, shapes_of(tiny))
    assert not found.known
    assert len(found.reason) > 10


def test_a_pointer_to_other_code_is_told_and_changes_nothing():
    """Loaders bring a class of their own for these model types, and run the other code only if told to trust it."""
    tiny = build("llama")
    shapes = {name: values.shape for name, values in tiny.tensors.items()}
    found = map_of(tiny.config | {"auto_map": {"AutoModel": "code.Model"}}, shapes)
    assert found.known
    assert found.own_code
    assert not map_of(tiny.config, shapes).own_code
    assert any("code of its own" in fact for fact in summary_of(found, "x").facts)
