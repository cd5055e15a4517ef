"""What the configuration ties, and what is equal byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from builders import random_tensor, write_checkpoint

from planner.checkpoint import open_checkpoint
from planner.profile import TensorProfile, profile_checkpoint
from planner.profile.ties import same_bytes_of, tied_by, ties_of

TIED = {"tie_word_embeddings": True}


def tensor(
    name: str, role: str, *, digest: str = "a", shape: tuple[int, ...] = (8, 4), **fields: object
) -> TensorProfile:
    given = {"name": name, "role": role, "layer": None, "dtype": "BF16", "elements": int(np.prod(shape))}
    return TensorProfile.model_validate(
        {**given, "shape": shape, "digest": f"blake3:{digest}", "understood": True, **fields}
    )


def stored(tensors: list[TensorProfile], config: dict[str, object] = TIED) -> list[tuple[str, tuple[str, ...]]]:
    return [(tie.stored, tie.names) for tie in ties_of(tensors, config)]


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("embed_tokens", "lm_head"),
        ("wte", "lm_head"),
        ("word_embeddings", "lm_head"),
        ("tok_embeddings", "output"),
        ("embed_in", "embed_out"),
        ("word_embeddings", "decoder"),
        ("shared", "lm_head"),
    ],
)
def test_embedding_and_head_are_stored_once_equal_or_different(embedding: str, head: str) -> None:
    first, same, other = tensor("e", embedding), tensor("h", head), tensor("h", head, digest="b")
    assert stored([first]) == [("once", ("e",))]
    assert stored([same]) == [("once", ("h",))]
    assert stored([first, same]) == [("equal", ("e", "h"))]
    assert stored([first, other]) == [("different", ("e", "h"))]


def test_another_dtype_or_shape_is_other_bytes() -> None:
    embedding = tensor("e", "embed_tokens")
    assert stored([embedding, tensor("h", "lm_head", dtype="F16")]) == [("different", ("e", "h"))]
    assert stored([embedding, tensor("h", "lm_head", shape=(9, 4))]) == [("different", ("e", "h"))]


def test_only_what_the_configuration_ties_is_tied() -> None:
    both = [tensor("e", "embed_tokens"), tensor("h", "lm_head")]
    assert stored(both, {}) == stored(both, {"tie_word_embeddings": False}) == []
    assert stored(both, {"tie_word_embeddings": "true"}) == []
    assert stored(both, {"text_config": TIED}) == [("equal", ("e", "h"))]
    assert stored(both, {"text_config": {"tie_word_embeddings": False}, **TIED}) == []
    assert tied_by({"text_config": 3}) is None


def test_only_matrices_outside_the_layers_are_meant() -> None:
    inside = tensor("l", "embed_tokens", layer=3)
    bias = tensor("b", "lm_head.bias", shape=(8,))
    assert stored([inside, bias, tensor("o", "output", shape=(8,))]) == []


def test_tables_of_several_shapes_are_held_to_the_head_they_fit() -> None:
    tensors = [tensor("e", "embed_tokens"), tensor("v", "wte", shape=(3, 3)), tensor("h", "lm_head", digest="b")]
    assert stored(tensors) == [("different", ("e", "h"))]
    several = [tensor("s", "shared"), tensor("a", "embed_tokens"), tensor("b", "embed_tokens", digest="b")]
    assert stored(several) == [("different", ("s", "a", "b"))]


def test_same_bytes_are_found_in_a_real_checkpoint(tmp_path) -> None:
    matrix, ones = random_tensor((8, 8)), np.full((8,), 0x3F80, dtype=np.uint16)
    model = write_checkpoint(
        tmp_path / "model",
        {
            "layers.4.up_proj.weight": ("BF16", matrix),
            "layers.4.norm.weight": ("BF16", ones),
            "layers.9.up_proj.weight": ("BF16", matrix.copy()),
            "layers.9.norm.weight": ("BF16", ones),
            "reshaped.weight": ("BF16", matrix.reshape(4, 16)),
            "as_f16.weight": ("F16", matrix),
            "other.weight": ("BF16", random_tensor((8, 8), seed=1)),
            "empty.a": ("BF16", matrix[:0]),
            "empty.b": ("BF16", matrix[:0]),
        },
    )
    profile = profile_checkpoint(open_checkpoint(model))
    found = same_bytes_of(profile.tensors)
    assert [(group.names, group.constant) for group in found] == [
        (("layers.4.up_proj.weight", "layers.9.up_proj.weight"), False),
        (("layers.4.norm.weight", "layers.9.norm.weight"), True),
    ]
    assert found[0].digest == profile.by_name["layers.4.up_proj.weight"].digest


def test_a_constant_with_a_nan_in_it_is_not_constant() -> None:
    pair = [tensor(name, "w", min=1.0, max=1.0, nan=1) for name in "ab"]
    assert [group.constant for group in same_bytes_of(pair)] == [False]
