"""How a family is declared: its blocks in the words of the field. One file a family in `families/` fills these in.

Names are those of the tensors in the checkpoint without `.weight`, relative to the block they are in (relative to the
model's prefix outside the blocks). Sizes come from the configuration; `assembly` compares each with the stored shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from planner.architecture.graph import NormKind

__all__ = [
    "Attention",
    "Decoder",
    "Experts",
    "Fused",
    "GatedMlp",
    "LatentAttention",
    "Layer",
    "Mlp",
    "Norm",
    "PlainMlp",
    "Projection",
]


@dataclass(frozen=True)
class Norm:
    """A normaliser."""

    name: str | None
    """None: it has neither weight nor bias."""
    kind: NormKind = "rms"
    bias: bool = False
    one_plus: bool = False
    """Whether the stored weight w acts as 1 + w (Gemma, Nemotron)."""
    over: Literal["all", "head"] = "all"
    """For norms of queries and keys: over the whole projection, or head by head."""
    weight: Literal["shared", "full"] = "full"
    """With over="head": one weight of head size for every head, or a weight for each channel of the projection."""


@dataclass(frozen=True)
class Projection:
    """A linear map."""

    name: str
    bias: bool = False
    transposed: bool = False
    """Stored [inputs, outputs] (GPT-2's Conv1D)."""
    bias_flag: str | None = None
    """The key of config.json that gives it a bias; None: the code of the family decides, and no key changes it."""


@dataclass(frozen=True)
class Fused:
    """Queries, keys and values of one projection."""

    projection: Projection
    order: Literal["blocks", "groups"]
    """blocks: all queries, all keys, all values. groups: for each key/value head its query heads, its key and value."""


@dataclass(frozen=True)
class Attention:
    """Softmax attention, with as many or fewer key/value heads than query heads."""

    heads: int
    key_value_heads: int
    width: int
    """Channels a head."""
    output: Projection
    query: Projection | None = None
    key: Projection | None = None
    value: Projection | None = None
    fused: Fused | None = None
    """In the place of query, key and value."""
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    value_norm: Norm | None = None
    rotary: int = 0
    """The leading channels of each head that are rotated with the position; 0: none."""
    pairing: Literal["halves", "neighbours"] = "halves"
    """Which channels make a plane of rotation: i and i + rotary/2, or 2i and 2i + 1."""
    clip: bool = False
    """Whether queries, keys and values are limited to a fixed range."""
    clip_after_norm: bool = False
    """Whether that happens after the norms of queries and keys (OLMoE)."""
    sinks: bool = False
    output_norm: Norm | None = None
    """A normaliser of the heads' mixture before the output projection."""
    norm_after_rotary: bool = False


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek V2, V3): keys and values unpacked from a small normalised vector."""

    heads: int
    plain: int
    """Channels of a query or key head that are not rotated."""
    rotary: int
    """Channels of a query or key head that are; the keys share them."""
    value_width: int
    latent: int
    """Width of the packed keys and values."""
    key_value_down: Projection
    """To [latent | rotary]."""
    key_value_norm: Norm
    key_value_up: Projection
    """To, for each head, [plain | value]."""
    output: Projection
    query: Projection | None = None
    """For each head [plain | rotary]; or the next three."""
    query_rank: int | None = None
    """Width of what `query_down` gives."""
    query_down: Projection | None = None
    query_norm: Norm | None = None
    query_up: Projection | None = None
    pairing: Literal["halves", "neighbours"] = "neighbours"


@dataclass(frozen=True)
class GatedMlp:
    """down(activation(gate(x)) · up(x))."""

    width: int
    gate: Projection
    up: Projection | None
    """None: `gate` gives both, the gate first."""
    down: Projection
    activation: str


@dataclass(frozen=True)
class PlainMlp:
    """down(activation(up(x)))."""

    width: int
    up: Projection
    down: Projection
    activation: str


@dataclass(frozen=True)
class Experts:
    """A mixture of experts, perhaps with experts that every token passes."""

    count: int
    top: int
    router: Projection
    scoring: Literal["softmax", "sigmoid"]
    renormalized: bool
    expert: GatedMlp | PlainMlp
    """Its names hold `{expert}`."""
    correction: str | None = None
    """Name of the bias that takes part in the choice only, without `.weight`."""
    shared: GatedMlp | PlainMlp | None = None
    shared_gate: Projection | None = None
    """A map to one channel whose sigmoid multiplies the shared experts' output."""


Mlp = GatedMlp | PlainMlp | Experts


@dataclass(frozen=True)
class Layer:
    """One block. Absent norms are None.

    sequential: x + post(attention(norm(x))), then the same with the MLP. parallel: x + attention(norm(x)) +
    mlp(norm'(x)), norm' being the attention's norm where `mlp_norm` is None. after: norm(x + attention(x)), then the
    same with the MLP.
    """

    attention: Attention | LatentAttention
    mlp: Mlp
    attention_norm: Norm | None = None
    attention_post_norm: Norm | None = None
    """Of the attention's output, before it is added to the stream."""
    mlp_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    order: Literal["sequential", "parallel", "after"] = "sequential"
    stream_from_norm: bool = False
    """Whether what is added to is the norm's output rather than its input (BLOOM's option)."""


@dataclass(frozen=True)
class Decoder:
    """A whole decoder-only language model."""

    width: int
    """Channels of the residual stream."""
    vocabulary: int
    embedding: str
    layers: int
    layer: Callable[[int], Layer]
    """The block of that number."""
    blocks: str
    """Name of a block, with `{layer}`, such as `layers.{layer}`."""
    final_norm: Norm | None
    head: Projection
    tied: bool
    """Whether the head's weight is the embedding's."""
    head_names: tuple[str, ...] = ()
    """Other names under which the head is stored."""
    prefixes: tuple[str, ...] = ("model.", "")
    """What stands before every name but the head's; the first one that is there counts."""
    positions: str | None = None
    """Name of the table of position embeddings."""
    embedding_norm: Norm | None = None
    embedding_projection: Projection | None = None
    """From a narrower or wider embedding to the stream (OPT-350M)."""
    embedding_width: int | None = None
    """Channels of the embedding, where they are not the stream's."""
    output_projection: Projection | None = None
    """From the stream back to the embedding's width, before the head."""
    softcap: bool = False
    """Whether the logits pass c · tanh(x / c)."""
    unread: tuple[str, ...] = ()
    """Patterns (as in a shell) of tensors that lie in some checkpoints and that no loader reads, such as masks."""
    read_elsewhere: tuple[str, ...] = ()
    """Patterns of tensors that transformers leaves out and other loaders may read, such as heads for more tokens."""
