"""A model's map as a document: for people, and for programs that want to know what a tensor does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planner.architecture.decoder import Attention, Experts, LatentAttention, Layer, Norm, PlainMlp
from planner.architecture.model_map import Axis, ModelMap
from planner.architecture.roles import role_of
from planner.records import Record

__all__ = ["MappedBand", "MappedTensor", "ModelSummary", "summary_of"]


class MappedBand(Record):
    """Heads or neurons of a tensor."""

    part: str
    """query, key, value, output, gate, up or down."""
    unit: Literal["head", "neuron"]
    """What one of them is."""
    axis: Axis
    """Whether they are rows or columns."""
    count: int
    """How many there are."""
    width: int
    """Rows or columns of each."""


class MappedTensor(Record):
    """One tensor and its place in the model."""

    name: str
    """The tensor."""
    role: str
    """Its role, by its name."""
    layer: int | None
    """The block it is in."""
    part: str
    """What it does, in words that are the same for all families."""
    expert: int | None = None
    """The expert it belongs to."""
    reads: Axis | None = None
    """Which of its sides reads the residual stream."""
    writes: Axis | None = None
    """Which of its sides writes to it."""
    bands: tuple[MappedBand, ...] = ()
    """Heads or neurons."""


class ModelSummary(Record):
    """What is known of a model's architecture, without running it."""

    schema_: Literal["planner/map@1"] = Field(default="planner/map@1", alias="schema")
    """Kind and version of this document."""
    name: str
    """The checkpoint."""
    family: str | None
    """The model type that is declared here; null for a model without one."""
    known: bool
    """Whether everything fits the declaration."""
    reason: str = ""
    """Why not."""
    layers: int | None = None
    """Blocks."""
    width: int | None = None
    """Channels of the residual stream."""
    facts: tuple[str, ...] = ()
    """The architecture in sentences: attention, norms, MLPs, head."""
    tensors: tuple[MappedTensor, ...] = ()
    """Every tensor that has a place."""
    unread: dict[str, str] = {}
    """Tensors that no loader, or not every loader, reads, and why."""
    unmapped: tuple[str, ...] = ()
    """Tensors that the declaration does not account for."""


def summary_of(model: ModelMap, name: str) -> ModelSummary:
    """The map of the checkpoint called `name` as a document."""
    decoder = model.decoder
    return ModelSummary(
        name=name,
        family=model.family,
        known=model.known,
        reason=model.reason,
        layers=decoder.layers if decoder else None,
        width=decoder.width if decoder else None,
        facts=tuple(_facts(model)),
        tensors=tuple(
            MappedTensor(
                name=p.name,
                role=role_of(p.name).role,
                layer=p.layer,
                part=p.part,
                expert=p.expert,
                reads=p.reads,
                writes=p.writes,
                bands=tuple(
                    MappedBand(part=b.part, unit=b.unit, axis=b.axis, count=len(b.indices), width=b.indices.shape[1])
                    for b in p.bands
                ),
            )
            for p in model.parameters.values()
        ),
        unread=model.unread | model.read_elsewhere,
        unmapped=model.unmapped,
    )


def _facts(model: ModelMap) -> list[str]:
    decoder = model.decoder
    if decoder is None:
        return []
    said: dict[str, list[int]] = {}
    for number in range(decoder.layers):
        for fact in _of_layer(decoder.layer(number)):
            said.setdefault(fact, []).append(number)
    facts = [f"{decoder.layers} layers, {decoder.width:,} channels, {decoder.vocabulary:,} tokens"]
    facts += [f if len(n) == decoder.layers else f"{f} ({_layers(n)})" for f, n in said.items()]
    if decoder.embedding_norm:
        facts.append(f"embedding: {_norm(decoder.embedding_norm)}")
    if decoder.final_norm:
        facts.append(f"before the head: {_norm(decoder.final_norm)}")
    stored = f"stored as {model.head}" if model.head else "not stored a second time"
    head = f"tied to {model.embedding}, {stored}" if decoder.tied else f"{model.head}, not tied"
    facts.append(f"head: {head}" + ("; its logits pass a cap" if decoder.softcap else ""))
    if model.own_code:
        facts.append("config.json points to code of its own; this is the map of the class that loaders bring")
    return facts


def _of_layer(layer: Layer) -> list[str]:
    facts = [_attention(layer.attention)]
    mlp = layer.mlp
    if isinstance(mlp, Experts):
        shared = ", and shared ones" if mlp.shared else ""
        facts.append(f"MLP: {mlp.count} experts, {mlp.top} a token by {mlp.scoring}{shared}; {mlp.expert.activation}")
    elif isinstance(mlp, PlainMlp):
        facts.append(f"MLP: plain, {mlp.width:,} neurons, {mlp.activation}")
    else:
        facts.append(
            f"MLP: gated, {mlp.width:,} neurons, {mlp.activation}{', gate and up in one' if not mlp.up else ''}"
        )
    facts += ["attention and MLP side by side"] if layer.order == "parallel" else []
    after = layer.order == "after"
    norms = (
        ("after the attention is added" if after else "before the attention", layer.attention_norm),
        ("after the attention", layer.attention_post_norm),
        ("after the MLP is added" if after else "before the MLP", layer.mlp_norm),
        ("after the MLP", layer.mlp_post_norm),
    )
    facts += [f"{where}: {_norm(norm)}" for where, norm in norms if norm]
    return facts


def _attention(attention: Attention | LatentAttention) -> str:
    if isinstance(attention, LatentAttention):
        width = attention.plain + attention.rotary
        return f"attention: latent (MLA), {attention.heads} heads of {width}, {attention.latent} latent channels"
    kind = "all heads with their own keys"
    if attention.key_value_heads == 1:
        kind = "one key/value head (MQA)"
    elif attention.key_value_heads < attention.heads:
        kind = f"{attention.key_value_heads} key/value heads (GQA)"
    fused = ", fused" if attention.fused else ""
    turned = f", {attention.rotary} channels rotated" if attention.rotary else ", not rotated"
    normed = f"; queries and keys: {_norm(attention.query_norm)}" if attention.query_norm else ""
    clipped = "; queries, keys and values are clipped" if attention.clip else ""
    return f"attention: {attention.heads} heads of {attention.width}{fused}, {kind}{turned}{normed}{clipped}"


def _norm(norm: Norm) -> str:
    kind = {"rms": "RMSNorm", "layer": "LayerNorm", "l2": "division by the length"}[norm.kind]
    named = f"{norm.name}, " if norm.name else ""
    plus = ", as 1 + w" if norm.one_plus else ""
    bias = ", with bias" if norm.bias else ""
    return f"{named}{kind}{' per head' if norm.over == 'head' else ''}{plus}{bias}"


def _layers(numbers: list[int]) -> str:
    return f"layer{'' if len(numbers) == 1 else 's'} {_ranges(numbers)}"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] to `0-2,5`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
