"""Where the heads lie, held against the modules of transformers themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture import HeadBand, head_layout, role_of

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}


def layouts(model: Any, config: dict[str, Any]) -> dict[str, tuple[HeadBand, ...]]:
    """Role to layout, for every weight of the first layer that has one."""
    found = {}
    for name, parameter in model.named_parameters():
        role = role_of(name)
        if role.layer == 0 and (layout := head_layout(role.role, tuple(parameter.shape), config)):
            found[role.role] = layout
    return found


def meta(kind: str, **given: Any) -> tuple[Any, dict[str, Any]]:
    """A model of transformers without weights, and its configuration as config.json holds it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**given)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model, config.to_dict()


SIZES = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": 32}


def test_llama_and_qwen_have_a_band_a_projection() -> None:
    for kind, width in (("Llama", 8), ("Qwen3", 16)):
        model, config = meta(kind, **SIZES, num_attention_heads=6, num_key_value_heads=2, head_dim=width)
        attention = model.model.layers[0].self_attn
        assert attention.q_proj.weight.shape[0] == 6 * width
        assert layouts(model, config) == {
            "q_proj": (HeadBand("query", "rows", 0, 6, width),),
            "k_proj": (HeadBand("key", "rows", 0, 2, width),),
            "v_proj": (HeadBand("value", "rows", 0, 2, width),),
            "o_proj": (HeadBand("output", "columns", 0, 6, width),),
        }


def test_phi3_lies_in_the_order_query_key_value() -> None:
    model, config = meta("Phi3", **SIZES, num_attention_heads=6, num_key_value_heads=2, pad_token_id=0)
    found = layouts(model, config)
    assert found == {
        "qkv_proj": (
            HeadBand("query", "rows", 0, 6, 8),
            HeadBand("key", "rows", 48, 2, 8),
            HeadBand("value", "rows", 64, 2, 8),
        ),
        "o_proj": (HeadBand("output", "columns", 0, 6, 8),),
    }
    last = found["qkv_proj"][-1]
    assert last.start + last.count * last.width == model.model.layers[0].self_attn.qkv_proj.weight.shape[0]


@pytest.mark.parametrize(("part", "band"), [("query", 0), ("key", 1), ("value", 2)])
def test_a_fused_projection_computes_with_the_rows_that_the_layout_names(part: str, band: int) -> None:
    # Only the value's rows can change what a single token's attention gives: its one weight is 1, whatever q and k say.
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Phi3Config(**SIZES, num_attention_heads=6, num_key_value_heads=2, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    weight = model.model.layers[0].self_attn.qkv_proj.weight
    found = head_layout("qkv_proj", tuple(weight.shape), config.to_dict())[band]
    assert found.part == part
    with torch.no_grad():
        token = torch.tensor([[3]])
        before = model(token).logits
        weight[found.start : found.start + found.count * found.width] = 0
        changed = not torch.equal(before, model(token).logits)
    assert changed == (part == "value")


def test_gpt2_lies_in_columns_and_its_c_proj_is_not_guessed() -> None:
    model, config = meta("GPT2", n_embd=48, n_head=6, n_layer=1, vocab_size=32, n_positions=16)
    assert layouts(model, config) == {
        "c_attn": (
            HeadBand("query", "columns", 0, 6, 8),
            HeadBand("key", "columns", 48, 6, 8),
            HeadBand("value", "columns", 96, 6, 8),
        )
    }


@pytest.mark.parametrize("kind", ["GPTNeoX", "Bloom", "Falcon"])
def test_interleaved_projections_have_no_bands(kind: str) -> None:
    model, config = meta(kind, **SIZES, num_attention_heads=6)
    found = layouts(model, config)
    assert "query_key_value" not in found
    assert set(found) <= {"dense"}


def test_codegen_and_bert_are_not_taken_for_what_their_words_say_elsewhere() -> None:
    codegen = {"model_type": "codegen", "n_embd": 48, "n_head": 6}
    assert head_layout("qkv_proj", (144, 48), codegen) == ()
    bert = {"model_type": "bert", "hidden_size": 48, "num_attention_heads": 6}
    assert head_layout("dense", (48, 48), bert) == (), "the pooler's is dense as well"
    hybrid = {"model_type": "qwen3_next", **{key: LLAMA[key] for key in ("hidden_size", "num_attention_heads")}}
    assert head_layout("out_proj", (64, 64), hybrid) == (), "that of the linear attention, with other heads"


def test_the_configuration_may_lie_in_text_config() -> None:
    text = {"num_attention_heads": 8, "hidden_size": 64}
    assert head_layout("q_proj", (64, 64), {"text_config": text}) == (HeadBand("query", "rows", 0, 8, 8),)
    same = {"text_config": text, "vision_config": {**text, "intermediate_size": 3}}
    assert head_layout("q_proj", (64, 64), same) == (HeadBand("query", "rows", 0, 8, 8),)
    torn = {"text_config": text, "vision_config": {"num_attention_heads": 4, "hidden_size": 64}}
    assert head_layout("q_proj", (64, 64), torn) == ()


@pytest.mark.parametrize(
    ("role", "shape"),
    [
        ("q_proj", (64, 65)),
        ("q_proj", (128, 64)),
        ("k_proj", (64, 64)),
        ("o_proj", (32, 64)),
        ("o_proj", (64, 72)),
        ("q_proj", (64,)),
        ("q_proj", ()),
        ("q_proj.bias", (64,)),
        ("experts.q_proj", (64, 64)),
        ("up_proj", (64, 64)),
    ],
)
def test_a_shape_or_role_that_does_not_fit_has_no_heads(role: str, shape: tuple[int, ...]) -> None:
    assert head_layout(role, shape, LLAMA) == ()


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", ["8", -8, 0, True, 8.0, 10**30, [8], {"a": 8}])
def test_hostile_values_have_no_heads(key: str, value: object) -> None:
    assert head_layout("k_proj", (32, 64), LLAMA) != ()
    assert head_layout("k_proj", (32, 64), {**LLAMA, key: value}) == ()


def test_true_is_not_one() -> None:
    assert head_layout("k_proj", (8, 64), {**LLAMA, "num_key_value_heads": 1}) != ()
    assert head_layout("k_proj", (8, 64), {**LLAMA, "num_key_value_heads": True}) == ()


ANY = st.none() | st.booleans() | st.integers(-2, 70) | st.floats() | st.text(max_size=3) | st.just({"hidden_size": 8})
KEYS = ["hidden_size", "n_embd", "num_attention_heads", "num_key_value_heads", "head_dim", "model_type", "text_config"]


@given(
    st.dictionaries(st.sampled_from(KEYS), ANY),
    st.sampled_from(["q_proj", "k_proj", "o_proj", "qkv_proj", "c_attn", "dense"]),
    st.lists(st.integers(0, 70), max_size=3).map(tuple),
)
def test_bands_never_leave_the_matrix(config: dict[str, Any], role: str, shape: tuple[int, ...]) -> None:
    for band in head_layout(role, shape, config):
        assert band.count > 0
        assert band.width > 0
        assert band.start + band.count * band.width <= shape[0 if band.axis == "rows" else 1]
