"""Role and layer, read from a tensor's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture import TensorRole, fused_experts, role_of


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
    ("name", "role", "expert"),
    [
        ("model.layers.3.mlp.experts.7.down_proj.weight", "experts.down_proj", 7),
        ("model.layers.3.mlp.experts.7.down_proj.bias", "experts.down_proj.bias", 7),
        ("model.layers.3.block_sparse_moe.experts.0.w1.weight", "experts.w1", 0),
        ("model.layers.3.mlp.routed_experts.12.w1.weight", "routed_experts.w1", 12),
        ("model.layers.3.adapters.1.w1.weight", "adapters.w1", None),
        ("model.layers.3.mlp.experts.down_proj.weight", "down_proj", None),
        ("model.layers.3.mlp.gate.weight", "gate", None),
        ("model.layers.3.mlp.shared_expert.down_proj.weight", "down_proj", None),
    ],
)
def test_an_expert_is_not_reached_by_the_role_of_a_dense_layer(name: str, role: str, expert: int | None) -> None:
    assert role_of(name) == TensorRole(role, 3, expert)


def test_the_first_number_is_the_layer_even_after_the_word_experts() -> None:
    assert role_of("experts.7.down_proj.weight") == TensorRole("down_proj", 7)
    assert role_of("experts.7.blocks.2.w1.weight") == TensorRole("blocks.w1", 7)


@pytest.mark.parametrize(
    ("name", "shape", "experts"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 32, 64), 8),
        ("model.layers.0.mlp.experts.down_proj.weight", (128, 32, 64), 128),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (32, 48, 16), 32),
        ("model.layers.0.moe.w1", (2, 2, 2), 2),
        ("model.layers.0.mlp.experts.gate_up_proj", (4096, 2, 2), 4096),
        ("model.layers.0.mlp.experts.gate_up_proj", (4097, 2, 2), None),
        ("model.layers.0.mlp.experts.gate_up_proj", (1, 32, 64), None),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (8, 64), None),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", (8, 64, 2, 16), None),
        ("model.layers.0.mlp.experts.conv.weight", (8, 1, 4), None),
        ("model.layers.0.mlp.experts.3.odd.weight", (8, 4, 4), None),
        ("model.layers.0.mixer.conv1d.weight", (256, 1, 4), None),
        ("model.layers.0.mixer.conv1d.weight", (256, 16, 4), None),
        ("model.layers.0.smoent.weight", (8, 4, 4), None),
        ("", (8, 4, 4), None),
        ("experts", (), None),
    ],
)
def test_fused_experts_are_known_by_path_and_shape_together(
    name: str, shape: tuple[int, ...], experts: int | None
) -> None:
    assert fused_experts(name, shape) == experts


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
