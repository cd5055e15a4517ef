"""Tensors that are one by configuration, and tensors that are equal by their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from planner.profile.types import SameBytes, TensorProfile, Tie

__all__ = ["same_bytes_of", "tied_by", "ties_of"]

_EMBEDDINGS = {
    *("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "embeddings", "emb", "shared"),
    *("token_embedding", "word_embedding"),
}
_HEADS = {"lm_head", "embed_out", "output", "head", "decoder"}


def tied_by(config: Mapping[str, Any]) -> bool | None:
    """`tie_word_embeddings`, that of `text_config` first, as transformers reads it; None where the file is silent."""
    for part in (config.get("text_config"), config):
        if isinstance(part, Mapping) and isinstance(tied := part.get("tie_word_embeddings"), bool):
            return tied
    return None


def ties_of(tensors: Iterable[TensorProfile], config: Mapping[str, Any]) -> tuple[Tie, ...]:
    """The embedding and the head that the configuration ties, and how they are stored; () if it ties nothing.

    Both stand outside the layers and are matrices of one shape. A head of another shape than the only embedding cannot
    be tied to it and is stored `different`.
    """
    if not tied_by(config):
        return ()
    outside = [tensor for tensor in tensors if tensor.layer is None and len(tensor.shape) == 2]
    embeddings = [tensor for tensor in outside if tensor.role in _EMBEDDINGS]
    heads = [tensor for tensor in outside if tensor.role in _HEADS]
    if len(embeddings) == 1 and len(heads) == 1:
        return (_tie(embeddings + heads),)
    by_shape: dict[tuple[int, ...], list[TensorProfile]] = {}
    for tensor in embeddings + heads:
        by_shape.setdefault(tensor.shape, []).append(tensor)
    # A second table of another shape (a codec's, a vision tower's) is not what the configuration means.
    wanted = {head.shape for head in heads} & {embedding.shape for embedding in embeddings}
    return tuple(_tie(group) for shape, group in by_shape.items() if shape in wanted or not (heads and embeddings))


def _tie(group: list[TensorProfile]) -> Tie:
    stored: Literal["once", "equal", "different"] = "once"
    if len(group) > 1:
        stored = "equal" if len({_identity(tensor) for tensor in group}) == 1 else "different"
    return Tie(names=tuple(tensor.name for tensor in group), stored=stored)


def same_bytes_of(tensors: Iterable[TensorProfile]) -> tuple[SameBytes, ...]:
    """Groups of tensors with the same dtype, shape and bytes, in the order of their first; without empty tensors."""
    groups: dict[tuple[str, tuple[int, ...], str], list[TensorProfile]] = {}
    for tensor in tensors:
        if tensor.elements:
            groups.setdefault(_identity(tensor), []).append(tensor)
    return tuple(
        SameBytes(digest=group[0].digest, names=tuple(tensor.name for tensor in group), constant=_is_constant(group[0]))
        for group in groups.values()
        if len(group) > 1
    )


def _identity(tensor: TensorProfile) -> tuple[str, tuple[int, ...], str]:
    return tensor.dtype, tensor.shape, tensor.digest


def _is_constant(tensor: TensorProfile) -> bool:
    return tensor.min is not None and tensor.min == tensor.max and not tensor.nan and not tensor.inf
