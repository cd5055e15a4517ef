"""What edits do to the tiny models: known cases that the oracle has to get right before it judges anything."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.difference import classify, measure
from models.tiny import Tiny, build, logits

ROOM = 1e-12

NAMES = {
    "embed": ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"),
    "head": ("lm_head.weight", "embed_out.weight"),
    "final": ("model.norm.weight", "ln_f.weight", "norm_f.weight"),
    "n1": ("1.input_layernorm.weight",),
    "n2": ("1.post_attention_layernorm.weight",),
    "router": ("1.mlp.gate.weight", "1.block_sparse_moe.gate.weight"),
}
"""Role in layer 1 -> ends of its stored name; other roles are `1.<anything>.<role>.weight`."""


def named(tiny: Tiny, role: str) -> str:
    """The stored tensor of a role, in layer 1 where there is a choice."""
    ends = NAMES.get(role, (f".{role}.weight", f".{role}.bias" if role.endswith("bias") else ""))
    ends = (f".{role}",) if "." in role else tuple(end for end in ends if end)
    found = [name for name in tiny.tensors if name.endswith(ends) and (role in NAMES or ".1." in name)]
    assert len(found) == 1, (role, found)
    return found[0]


def scaled(tiny: Tiny, **factors: float) -> dict[str, np.ndarray]:
    """Whole tensors times a factor."""
    return {named(tiny, role): tiny.tensors[named(tiny, role)] * factor for role, factor in factors.items()}


def verdict(tiny: Tiny, edits: dict[str, np.ndarray]) -> str:
    """What `classify` says, with "/eps" behind it where it holds only up to the normalisers' epsilon."""
    exact = classify(logits(tiny, {}), logits(tiny, edits))
    limit = classify(logits(tiny, {}, tiny_eps=True), logits(tiny, edits, tiny_eps=True))
    return limit if exact == limit else f"{limit}/eps"


CELLS = [
    # Family, role in layer 1, verdict of scaling it by 1.05.
    *[("llama", role, "different") for role in ("embed", "n1", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")],
    ("llama", "head", "rescaled"),
    ("llama", "final", "rescaled"),
    ("llama-bias", "o_proj", "different"),
    ("llama-tied", "embed", "different"),
    ("qwen3", "q_proj", "same/eps"),
    ("qwen3", "k_proj", "same/eps"),
    ("qwen3", "q_norm", "different"),
    ("qwen3", "n1", "different"),
    ("qwen3_moe", "q_proj", "same/eps"),
    ("qwen3-bias", "q_proj", "different"),
    ("mixtral", "router", "different"),
    ("mixtral-top1", "router", "same"),
    ("qwen3_moe-top1", "router", "same"),
    *[("gemma2", role, "same/eps") for role in ("v_proj", "o_proj", "up_proj", "down_proj")],
    *[("gemma2", role, "different") for role in ("q_proj", "gate_proj", "n1", "post_feedforward_layernorm", "final")],
    *[("gemma3_text", role, "same/eps") for role in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")],
    ("gemma3_text", "q_norm", "different"),
    *[("olmo2", role, "same/eps") for role in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")],
    ("olmo2", "gate_proj", "different"),
    ("glm4", "o_proj", "same/eps"),
    ("glm4", "down_proj", "same/eps"),
    ("glm4", "v_proj", "different"),
    ("deepseek_v2", "q_a_proj", "same/eps"),
    ("deepseek_v2-noqlora", "q_proj", "different"),
    ("deepseek_v3", "kv_a_proj_with_mqa", "different"),
    ("cohere", "q_proj", "different"),
    ("cohere-qknorm", "q_proj", "same/eps"),
    ("stablelm-qknorm", "k_proj", "same/eps"),
    ("bloom", "embed", "rescaled/eps"),
    ("mpt", "final", "rescaled"),
    ("gpt2", "final", "different"),
    ("phi", "head", "different"),
    ("gpt_neox", "head", "rescaled"),
    ("nemotron", "n2", "different"),
    ("olmo-clip", "v_proj", "different"),
]


@pytest.mark.parametrize(("key", "role", "expected"), CELLS)
def test_a_cell_of_the_measured_table(key: str, role: str, expected: str) -> None:
    tiny = build(key)
    edits = scaled(tiny, **{role: 1.05})
    assert verdict(tiny, edits) == expected
    before, after = logits(tiny, {}), logits(tiny, edits)
    if expected.startswith("rescaled"):
        assert measure(before, after).factor == pytest.approx(1.05, rel=1e-4)
    if expected == "different":
        assert measure(before, after).largest > 1e-4  # nothing lies between this and the epsilon's effect
    if expected == "same/eps":
        assert measure(before, after).largest < 1e-4
        assert measure(*(logits(tiny, change, tiny_eps=True) for change in ({}, edits))).largest < ROOM
    if expected == "same":
        assert measure(before, after).largest < ROOM


@pytest.mark.parametrize(
    ("key", "factors"),
    [
        ("llama", {"v_proj": 2, "o_proj": 0.5}),
        ("llama", {"v_proj": -3, "o_proj": -1 / 3}),
        ("llama", {"q_proj": 3, "k_proj": 1 / 3}),
        ("llama", {"up_proj": 3, "down_proj": 1 / 3}),
        ("qwen3", {"q_norm": 3, "k_norm": 1 / 3}),
        ("arcee", {"up_proj": 3, "down_proj": 1 / 9}),
        ("llama", {"final": 3, "head": 1 / 3}),
        ("llama", {"n2": 3, "gate_proj": 1 / 3, "up_proj": 1 / 3}),
        ("opt", {"fc1.weight": 3, "fc1.bias": 3, "fc2.weight": 1 / 3}),
    ],
)
def test_factors_that_cancel_leave_no_rounding_behind(key: str, factors: dict[str, float]) -> None:
    tiny = build(key)
    assert measure(logits(tiny, {}), logits(tiny, scaled(tiny, **factors))).largest < ROOM
    first = dict([next(iter(factors.items()))])
    assert classify(logits(tiny, {}), logits(tiny, scaled(tiny, **first))) != "same"


def test_two_edits_that_are_one() -> None:
    arcee = build("arcee")
    assert (
        measure(logits(arcee, scaled(arcee, n2=1.05)), logits(arcee, scaled(arcee, down_proj=1.05**2))).largest < ROOM
    )
    qwen3 = build("qwen3")
    pair = [logits(qwen3, scaled(qwen3, **{role: 1.05}), tiny_eps=True) for role in ("n1", "o_proj")]
    assert measure(*pair).largest < ROOM


def test_constants_that_a_layernorm_or_a_softmax_takes_out() -> None:
    gpt2, llama = build("gpt2"), build("llama")
    positions, tokens = "transformer.wpe.weight", "transformer.wte.weight"
    assert verdict(gpt2, {positions: gpt2.tensors[positions] + 0.5}) == "same"
    assert verdict(gpt2, {tokens: gpt2.tensors[tokens] + 0.5}) == "shifted"
    assert verdict(llama, {named(llama, "head"): llama.tensors[named(llama, "head")] + 0.5}) == "shifted"
    assert verdict(llama, {named(llama, "embed"): llama.tensors[named(llama, "embed")] + 0.5}) == "different"
    for key, expected in {
        "mixtral": "same",
        "qwen3_moe-raw": "same",
        "deepseek_v2": "same",
        "deepseek_v3": "different",
    }.items():
        tiny = build(key)
        router = named(tiny, "router")
        row = np.random.default_rng(1).normal(0, 1, (1, 32))
        assert verdict(tiny, {router: tiny.tensors[router] + row}) == expected
    tiny = build("deepseek_v3")
    bias = named(tiny, "gate.e_score_correction_bias")
    assert verdict(tiny, {bias: tiny.tensors[bias] + 0.5}) == "same"


@pytest.mark.parametrize(("key", "expected"), [("olmo", "same/eps"), ("llama", "same/eps"), ("olmo2", "different")])
def test_a_factor_on_all_that_writes_the_stream_is_normalised_away(key: str, expected: str) -> None:
    """Not where an MLP reads the stream itself; and the epsilon in question is also the constant in OLMo's code."""
    tiny = build(key)
    ends = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight", "post_attention_layernorm.weight")
    writers = {"olmo2": (*ends[::3], "post_feedforward_layernorm.weight")}.get(key, ends[:3])
    edits = {name: values * 3 for name, values in tiny.tensors.items() if name.endswith(writers)}
    assert verdict(tiny, edits) == expected


def test_one_dimension_of_query_and_key_cancels_only_without_rotary_positions() -> None:
    tiny = build("smollm3")  # layer 1 has none, layer 0 has
    column = np.ones((32, 1))
    for layer, expected in ((1, "same"), (0, "different")):
        query, key = (f"model.layers.{layer}.self_attn.{name}_proj.weight" for name in "qk")
        rows, heads = column.copy(), column[:16].copy()
        heads[3::8], rows[3::8] = 2, 0.5
        assert verdict(tiny, {query: tiny.tensors[query] * rows, key: tiny.tensors[key] * heads}) == expected


def fused(key: str, tiny: Tiny) -> tuple[str, np.ndarray]:
    """The fused query, key and value of layer 1, and what each row (Conv1D: column) is: "q0" ... "k0" ... "v1"."""
    ends = ("qkv_proj.weight", "query_key_value.weight", "c_attn.weight", "Wqkv.weight")
    name = next(name for name in tiny.tensors if ".1." in name and name.endswith(ends))
    blocks = {
        "phi3": "q0 q1 q2 q3 k0 k1 v0 v1",
        "gpt2": "q0 q1 q2 q3 k0 k1 k2 k3 v0 v1 v2 v3",
        "mpt": "q0 q1 q2 q3 k0 k1 k2 k3 v0 v1 v2 v3",
        "gpt_bigcode": "q0 q1 q2 q3 k0 v0",
        "gpt_bigcode-mha": "q0 k0 v0 q1 k1 v1 q2 k2 v2 q3 k3 v3",
        "gpt_neox": "q0 k0 v0 q1 k1 v1 q2 k2 v2 q3 k3 v3",
        "bloom": "q0 k0 v0 q1 k1 v1 q2 k2 v2 q3 k3 v3",
        "falcon-alibi": "q0 k0 v0 q1 k1 v1 q2 k2 v2 q3 k3 v3",
        "falcon": "q0 q1 q2 q3 k0 v0",
        "falcon-new": "q0 q1 k0 v0 q2 q3 k1 v1",
    }[key].split()
    return name, np.repeat(blocks, 8)


@pytest.mark.parametrize(
    "key",
    [
        "phi3",
        "gpt2",
        "mpt",
        "gpt_bigcode",
        "gpt_bigcode-mha",
        "gpt_neox",
        "bloom",
        "falcon-alibi",
        "falcon",
        "falcon-new",
    ],
)
def test_where_query_key_and_value_lie_in_a_fused_matrix(key: str) -> None:
    """The last query group by 3 and its key head by 1/3; the last value head by 3 and the output's columns by 1/3."""
    tiny = build(key)
    name, block = fused(key, tiny)
    bias = name.replace("weight", "bias")
    key_heads = len({part for part in block if part[0] == "k"})
    last = {f"q{head}" for head in range(4) if head // (4 // key_heads) == key_heads - 1}
    rows = np.where(np.isin(block, list(last)), 3.0, 1.0)
    rows[block == f"k{key_heads - 1}"] = 1 / 3
    whole = {name: tiny.tensors[name] * (rows if key == "gpt2" else rows[:, None])}
    if bias in tiny.tensors:
        whole[bias] = tiny.tensors[bias] * rows
    assert measure(logits(tiny, {}), logits(tiny, whole)).largest < ROOM

    rows = np.where(block == f"v{key_heads - 1}", 3.0, 1.0)
    ends = ("attn.out_proj.weight", "dense.weight", "attn.c_proj.weight", "o_proj.weight")
    output = next(name for name in tiny.tensors if ".1." in name and name.endswith(ends))
    columns = np.repeat([1 / 3 if f"q{head}" in last else 1.0 for head in range(4)], 8)
    whole = {
        name: tiny.tensors[name] * (rows if key == "gpt2" else rows[:, None]),
        output: tiny.tensors[output] * (columns[:, None] if key == "gpt2" else columns),
    }
    if bias in tiny.tensors:
        whole[bias] = tiny.tensors[bias] * rows
    assert measure(logits(tiny, {}), logits(tiny, whole)).largest < ROOM


@pytest.mark.parametrize("key", ["phi3", "glm", "glm4"])
def test_gate_lies_before_up(key: str) -> None:
    tiny = build(key)
    both, down = named(tiny, "gate_up_proj"), named(tiny, "down_proj")
    rows = np.repeat([1.0, 3.0], 48)[:, None]
    edits = {both: tiny.tensors[both] * rows, down: tiny.tensors[down] / 3}
    assert measure(logits(tiny, {}), logits(tiny, edits)).largest < ROOM


@pytest.mark.parametrize("key", ["deepseek_v2", "deepseek_v3"])
def test_where_the_parts_of_latent_attention_lie(key: str) -> None:
    tiny = build(key)
    query, latent, expand = (named(tiny, role) for role in ("q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"))
    output = named(tiny, "self_attn.o_proj.weight")
    plain, turned = (np.tile(np.repeat(factors, [6, 4]), 4)[:, None] for factors in ([3.0, 1.0], [1.0, 3.0]))
    of = tiny.tensors
    for edits in (
        {query: of[query] * plain, expand: of[expand] * np.tile(np.repeat([1 / 3, 1.0], [6, 11]), 4)[:, None]},
        {query: of[query] * turned, latent: of[latent] * np.repeat([1.0, 1 / 3], [14, 4])[:, None]},
        {expand: of[expand] * np.tile(np.repeat([1.0, 3.0], [6, 11]), 4)[:, None], output: of[output] / 3},
    ):
        assert measure(logits(tiny, {}), logits(tiny, edits)).largest < ROOM
    assert verdict(tiny, {latent: of[latent] * np.repeat([3.0, 1.0], [14, 4])[:, None]}) == "same/eps"


@pytest.mark.parametrize(
    ("key", "expected"), [("gpt2", "same"), ("bloom", "same"), ("falcon-alibi", "same"), ("gpt_neox", "different")]
)
def test_a_fused_key_bias_is_idle_where_no_position_turns_it(key: str, expected: str) -> None:
    tiny = build(key)
    name, block = fused(key, tiny)
    bias = name.replace("weight", "bias")
    offset = np.where(np.char.startswith(block, "k"), np.arange(len(block)), 0)
    assert verdict(tiny, {bias: tiny.tensors[bias] + offset}) == expected


def test_a_soft_cap_keeps_the_order() -> None:
    capped = build("gemma2", with_copy=True)
    assert verdict(capped, scaled(capped, head=1.05)) == "monotone"
    plain = build("gemma2-uncapped", with_copy=True)
    assert verdict(plain, scaled(plain, head=1.05)) == "rescaled"
    assert verdict(plain, scaled(plain, head=-1.05)) == "different"


def test_the_classes_on_made_up_logits() -> None:
    random = np.random.default_rng(0)
    before = random.normal(0, 3, (64, 64))
    shift = random.normal(0, 1, (64, 1))
    assert classify(before, before * (1 + 1e-12)) == "same"
    assert classify(before, before + shift) == "shifted"
    assert classify(before, before * 0.3) == "rescaled"
    assert classify(before, before * -0.3) == "different"
    assert classify(before, before * 0) == "different"
    assert classify(before, before * 1.5 + shift) == "different"
    assert measure(before, before * 1.5 + shift).affine < ROOM
    assert classify(before, before * 1.5 + 2) == "monotone"
    assert classify(before, np.tanh(before / 5)) == "monotone"
    for size in (1e-8, 1e-6, 1e-4, 1e-2):
        assert classify(before, before + size * random.normal(0, 1, before.shape)) == "different"
        assert classify(before, before + size * before**3) == "monotone"
    swapped = before.copy()
    swapped[:, [3, 4]] = swapped[:, [4, 3]]
    assert classify(before, swapped) == "different"
    with pytest.raises(ValueError, match="finite"):
        classify(before, before * np.inf)
