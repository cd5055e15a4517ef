"""What is suggested for a wrong name: the right one first, at most three, and never one that is not there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.plan import Target, TargetUnmatched, nearest, resolve
from planner.plan.nearest import nearest_hint

PARTS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.q_norm"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"),
)
NAMES = (
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.{part}.weight" for layer in range(28) for part in PARTS),
    *(f"model.layers.{layer}.self_attn.q_proj.bias" for layer in range(28)),
    "model.norm.weight",
    "lm_head.weight",
)
EXPERTS = (
    "model.embed_tokens.weight",
    *(
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
        for layer in range(48)
        for expert in range(128)
        for part in ("gate_proj", "up_proj", "down_proj")
    ),
    *(f"model.layers.{layer}.{part}.weight" for layer in range(48) for part in PARTS),
)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.layers.10.self_attn.qproj.weight", "model.layers.10.self_attn.q_proj.weight"),
        ("model.layers.10.self_attn.Q_Proj.weight", "model.layers.10.self_attn.q_proj.weight"),
        ("model.layers.10.self_attn.q_proj", "model.layers.10.self_attn.q_proj.weight"),
        ("layers.10.self_attn.q_proj.weight", "model.layers.10.self_attn.q_proj.weight"),
        ("model.model.layers.10.self_attn.q_proj.weight", "model.layers.10.self_attn.q_proj.weight"),
        ("model.lm_head.weight", "lm_head.weight"),
        ("embed_tokens", "model.embed_tokens.weight"),
        ("model.layers.27.input_layer_norm.weight", "model.layers.27.input_layernorm.weight"),
        ("model.layers.28.mlp.down_proj.weight", "model.layers.27.mlp.down_proj.weight"),
        ("model.layers.3.self_attn.qproj.bias", "model.layers.3.self_attn.q_proj.bias"),
        ("transformer.layers.5.mlp.up_proj", "model.layers.5.mlp.up_proj.weight"),
    ],
)
def test_a_slip_is_answered_with_the_one_name_that_was_meant(wrong: str, right: str) -> None:
    assert nearest(wrong, NAMES) == (right,)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("model.layers.11.attention.q_proj.weight", "model.layers.11.self_attn.q_proj.weight"),
        ("model.layers.11.mlp.downproject.weight", "model.layers.11.mlp.down_proj.weight"),
        ("model.layers.11.self_attn.qproj.wieght", "model.layers.11.self_attn.q_proj.weight"),
        ("model.layers.*.mlp.dwn_proj.weight", "model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_what_is_further_off_is_answered_with_three_names_of_that_layer(wrong: str, right: str) -> None:
    found = nearest(wrong, NAMES)
    assert found[0] == right
    assert 1 < len(found) <= 3


def test_experts_are_found_by_both_their_numbers() -> None:
    assert len(EXPERTS) > 18_000
    wrong = "model.layers.31.mlp.experts.77.downproj.weight"
    assert nearest(wrong, EXPERTS) == ("model.layers.31.mlp.experts.77.down_proj.weight",)
    assert nearest("layers.47.mlp.experts.128.up_proj", EXPERTS) == ("model.layers.47.mlp.experts.127.up_proj.weight",)


def test_what_is_like_nothing_is_answered_with_what_there_is() -> None:
    assert nearest("zzzzzz", NAMES) == ()
    assert nearest_hint("zzzzzz", NAMES).startswith(f"there are {len(NAMES)}, such as model.embed_tokens.weight")
    assert nearest("model.norm.weight", ()) == ()
    assert nearest_hint("model.norm.weight", ()) == "there are none"


def test_a_suggestion_is_never_taken_for_an_answer() -> None:
    with pytest.raises(TargetUnmatched) as caught:
        resolve(Target(tensors=("model.layers.10.self_attn.qproj.weight",)), NAMES)
    assert caught.value.hint == "nearest: model.layers.10.self_attn.q_proj.weight"


def test_thousands_of_patterns_on_thousands_of_names_are_resolved() -> None:
    found = resolve(Target(tensors=("model.layers.{0-47}.mlp.experts.{0-127}.*",)), EXPERTS)
    assert len(found) == 48 * 128 * 3
    assert found == tuple(name for name in EXPERTS if ".experts." in name)


def test_names_made_to_take_long_are_compared_by_a_bounded_part_of_them() -> None:
    hostile = tuple("ab" * 128 + chr(0x4E00 + number) * 3 for number in range(18_000))
    assert len(nearest("ba" * 200, hostile)) <= 3
    assert nearest("9" * 5000, ("1" * 5000, "x")) == ("1" * 5000,)


_WORDS = st.lists(st.sampled_from(["model", "layers", "0", "10", "99999999999999", "q_proj", "*", "[", "weight", "é"]))


@given(_WORDS.map(".".join), st.lists(_WORDS.map(".".join), unique=True))
@settings(deadline=None)
def test_only_names_that_are_there_are_suggested_and_at_most_three(wanted: str, there: list[str]) -> None:
    found = nearest(wanted, there)
    assert set(found) <= set(there)
    assert len(found) == len(set(found)) <= 3
