"""Role and layer, read from a tensor's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture import TensorRole, role_of


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("model.layers.10.self_attn.q_proj.weight", "q_proj", 10),
        ("model.layers.0.mlp.down_proj.weight", "down_proj", 0),
        ("model.layers.27.input_layernorm.weight", "input_layernorm", 27),
        ("model.layers.3.self_attn.q_norm.weight", "q_norm", 3),
        ("model.embed_tokens.weight", "embed_tokens", None),
        ("model.norm.weight", "norm", None),
        ("lm_head.weight", "lm_head", None),
        ("h.0.attn.c_attn.weight", "c_attn", 0),
        ("transformer.h.11.mlp.c_proj.bias", "c_proj.bias", 11),
        ("wte.weight", "wte", None),
        ("encoder.layer.5.attention.self.query.bias", "query.bias", 5),
        ("lm_head.bias", "lm_head.bias", None),
    ],
)
def test_names_of_common_architectures(name: str, role: str, layer: int | None) -> None:
    assert role_of(name) == TensorRole(role, layer)


def test_a_bias_is_not_reached_by_the_role_of_its_weight() -> None:
    weight = role_of("model.layers.2.self_attn.q_proj.weight")
    bias = role_of("model.layers.2.self_attn.q_proj.bias")
    assert (weight.role, bias.role) == ("q_proj", "q_proj.bias")
    assert weight.layer == bias.layer == 2


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.3.mlp.experts.7.down_proj.weight", "experts.down_proj"),
        ("model.layers.3.mlp.experts.7.down_proj.bias", "experts.down_proj.bias"),
        ("model.layers.3.block_sparse_moe.experts.0.w1.weight", "experts.w1"),
        ("model.layers.3.mlp.gate.weight", "gate"),
        ("model.layers.3.mlp.shared_expert.down_proj.weight", "down_proj"),
    ],
)
def test_an_expert_is_not_reached_by_the_role_of_a_dense_layer(name: str, role: str) -> None:
    assert role_of(name) == TensorRole(role, 3)


@pytest.mark.parametrize(
    ("name", "role", "layer"),
    [
        ("", "", None),
        (".", "", None),
        ("weight", "weight", None),
        ("bias", "bias", None),
        ("3", "3", 3),
        ("3.weight", "3", 3),
        ("0.1.weight", "1", 0),
        ("x.²", "²", None),
        ("layers.٣.w", "w", None),
        ("layers.12345678901234567890.w", "w", None),
    ],
)
def test_odd_names_have_a_role_as_well(name: str, role: str, layer: int | None) -> None:
    assert role_of(name) == TensorRole(role, layer)


@given(st.text() | st.lists(st.sampled_from(["", "0", "7", "experts", "weight", "bias", "²", "w"])).map(".".join))
def test_no_name_is_an_error(name: str) -> None:
    found = role_of(name)
    assert isinstance(found.role, str)
    assert found.layer is None or found.layer >= 0


@given(st.integers(0, 999_999), st.sampled_from(["q_proj", "up_proj", "post_attention_layernorm"]))
def test_the_number_on_the_path_is_the_layer(layer: int, role: str) -> None:
    assert role_of(f"model.layers.{layer}.block.{role}.weight") == TensorRole(role, layer)
