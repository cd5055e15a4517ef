"""Where the attention heads lie in a projection, from its role, its shape and the configuration.

A head is a band of rows of what makes queries, keys and values, and a band of columns of what reads their mixture; in
GPT-2's Conv1D the matrix lies the other way round. Layouts follow the modules of transformers (modeling_llama,
modeling_qwen3, modeling_phi3, modeling_gpt2). A layout is given only where the role means one thing and the shape is
exactly what the configuration says; a reader is better served by no heads than by wrong ones. So none for:

- `query_key_value` (Falcon, BLOOM, GPT-NeoX): the rows of a head are interleaved, and differently in each;
- `qkv_proj` outside the Phi-3 family: CodeGen's lies in four blocks, each in the order query, value, key;
- `c_proj`: the word is used in the attention and in the MLP;
- `out_proj` and `dense` outside the families where they can be nothing but the attention's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["HeadBand", "head_layout"]

_SEPARATE: dict[str, Literal["query", "key", "value"]] = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "query": "query",
    "key": "key",
    "value": "value",
}
_FUSED_IN_ORDER = {"phi3", "phi3_v", "phi4mm", "phi4_multimodal"}
_OUTPUTS = {
    "o_proj": None,
    "out_proj": {"opt", "gpt_neo", "gptj", "codegen", "mpt", "xglm", "biogpt", "clip_text_model", "clip_vision_model"},
    "dense": {"falcon", "bloom", "gpt_neox", "gpt_neox_japanese", "phi", "persimmon"},
}
"""Roles of the attention's output, with the model types where they are that; None for all."""

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_MOST_HEADS = 4096


@dataclass(frozen=True)
class HeadBand:
    """Heads that lie side by side: head i is the rows (or columns) start + i·width up to start + (i+1)·width."""

    part: Literal["query", "key", "value", "output"]
    axis: Literal["rows", "columns"]
    start: int
    count: int
    """How many heads."""
    width: int
    """Rows or columns a head."""


@dataclass(frozen=True)
class _Attention:
    model_type: str
    hidden: int
    heads: int
    key_value_heads: int
    width: int


def head_layout(role: str, shape: tuple[int, ...], config: dict[str, Any]) -> tuple[HeadBand, ...]:
    """The heads of the tensor with this role and shape [rows, columns]; () where they are not known for certain.

    A configuration with parts (`text_config`, `vision_config`) is tried as a whole and by its parts; where two of them
    fit the shape and disagree, nothing is said. Never an error, whatever the configuration holds.
    """
    if len(shape) != 2:
        return ()
    layouts = {layout for attention in _attentions(config) if (layout := _layout(role, shape, attention))}
    return layouts.pop() if len(layouts) == 1 else ()


def _layout(role: str, shape: tuple[int, ...], attention: _Attention) -> tuple[HeadBand, ...]:
    rows, columns = shape
    queries, keys = attention.heads * attention.width, attention.key_value_heads * attention.width
    if role in _SEPARATE and columns == attention.hidden:
        part = _SEPARATE[role]
        expected = queries if part == "query" else keys
        return (HeadBand(part, "rows", 0, expected // attention.width, attention.width),) if rows == expected else ()
    if role in _OUTPUTS and (rows, columns) == (attention.hidden, queries):
        certain = _OUTPUTS[role] is None or attention.model_type in (_OUTPUTS[role] or ())
        return (HeadBand("output", "columns", 0, attention.heads, attention.width),) if certain else ()
    fused = queries + 2 * keys
    if role == "qkv_proj" and attention.model_type in _FUSED_IN_ORDER and shape == (fused, attention.hidden):
        return _in_order(attention, "rows")
    if role == "c_attn" and shape == (attention.hidden, fused):
        return _in_order(attention, "columns")
    return ()


def _in_order(attention: _Attention, axis: Literal["rows", "columns"]) -> tuple[HeadBand, ...]:
    queries, keys = attention.heads * attention.width, attention.key_value_heads * attention.width
    return (
        HeadBand("query", axis, 0, attention.heads, attention.width),
        HeadBand("key", axis, queries, attention.key_value_heads, attention.width),
        HeadBand("value", axis, queries + keys, attention.key_value_heads, attention.width),
    )


def _attentions(config: dict[str, Any]) -> Iterator[_Attention]:
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        hidden, heads = _count(part, _HIDDEN), _count(part, _HEADS)
        if hidden is None or heads is None or heads > _MOST_HEADS:
            continue
        key_value_heads = _count(part, ("num_key_value_heads",)) if _given(part, "num_key_value_heads") else heads
        if _given(part, "head_dim"):
            width = _count(part, ("head_dim",))
        else:
            width = hidden // heads if hidden % heads == 0 else None
        model_type = part.get("model_type", config.get("model_type"))
        if key_value_heads is not None and key_value_heads <= heads and width is not None:
            yield _Attention(str(model_type), hidden, heads, key_value_heads, width)


def _given(config: dict[str, Any], key: str) -> bool:
    return config.get(key) is not None


def _count(config: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first of the keys that is there, if it holds a positive whole number; a bool is none."""
    value = next((config[key] for key in keys if _given(config, key)), None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
