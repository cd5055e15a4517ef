"""From a family's declaration and the stored shapes to the map: every tensor found, every shape compared.

Whatever does not fit the declaration exactly makes the map unknown: a wrong map would prove things that are not so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from planner.architecture.attention import attention
from planner.architecture.blocks import Blocks
from planner.architecture.config import Unreadable
from planner.architecture.decoder import Decoder, Layer
from planner.architecture.feed_forward import mlp
from planner.architecture.graph import Graph, Linear, Lookup, Softcap, Sum, Weight
from planner.architecture.model_map import Axis, ModelMap, sorted_out

__all__ = ["assemble"]

Shapes = Mapping[str, tuple[int, ...]]

_NOT_READ = "no loader reads it: the model computes it from the configuration"
_ELSEWHERE = "transformers leaves it out; other loaders (vLLM, for speculative decoding) may read it"


def assemble(family: str, decoder: Decoder, shapes: Shapes) -> ModelMap:
    """The map of a checkpoint whose tensors have these shapes. Raises `Unreadable` where they do not fit."""
    prefix = next((p for p in decoder.prefixes if p + decoder.embedding + ".weight" in shapes), None)
    if prefix is None:
        raise Unreadable(f"there is no {decoder.prefixes[0]}{decoder.embedding}.weight")
    blocks = Blocks(Graph(), shapes, {})
    stream = _embedded(blocks, decoder, prefix)
    for number in range(decoder.layers):
        inside = blocks.at(number, prefix + decoder.blocks.format(layer=number) + ".")
        stream = _block(inside, decoder.layer(number), stream, decoder.width)
    outside = blocks.at(None, prefix)
    if decoder.final_norm:
        stream = outside.normalized(decoder.final_norm, stream, decoder.width, part="final_norm")
    if decoder.output_projection:
        stream = outside.projected(
            decoder.output_projection,
            stream,
            decoder.embedding_width or decoder.width,
            part="output_projection",
            reads=True,
        )
    head = _head(blocks.at(None, ""), decoder, prefix, stream)
    if decoder.softcap:
        blocks.graph.add(
            Softcap(width=decoder.vocabulary, layer=None, says="the cap on the logits", x=len(blocks.graph.nodes) - 1)
        )
    rest = {name: shape for name, shape in shapes.items() if name not in blocks.parameters}
    unread = sorted_out(rest, decoder.unread, _NOT_READ)
    elsewhere = sorted_out({n: s for n, s in rest.items() if n not in unread}, decoder.read_elsewhere, _ELSEWHERE)
    return ModelMap(
        family=family,
        decoder=decoder,
        graph=blocks.graph,
        parameters=blocks.parameters,
        unread=unread,
        read_elsewhere=elsewhere,
        unmapped=tuple(name for name in rest if name not in unread and name not in elsewhere),
        embedding=prefix + decoder.embedding + ".weight",
        head=head,
    )


def _embedded(blocks: Blocks, decoder: Decoder, prefix: str) -> int:
    width = decoder.embedding_width or decoder.width
    outside = blocks.at(None, prefix)
    rows = _rows_of(blocks.shapes, prefix + decoder.embedding + ".weight")
    whole = width == decoder.width
    table = outside.take(
        decoder.embedding + ".weight", (rows, width), part="embedding", writes="columns" if whole else None
    )
    graph = blocks.graph
    place = graph.add(Lookup(width=width, layer=None, says="the embedding", table=table))
    if decoder.embedding_projection:
        place = outside.projected(
            decoder.embedding_projection, place, decoder.width, part="input_projection", writes=True
        )
    if decoder.positions:
        rows = _rows_of(blocks.shapes, prefix + decoder.positions + ".weight")
        table = outside.take(decoder.positions + ".weight", (rows, decoder.width), part="positions", writes="columns")
        position = graph.add(
            Lookup(width=decoder.width, layer=None, says="the position embedding", table=table, by="position")
        )
        place = graph.add(Sum(width=decoder.width, layer=None, says="the residual stream", terms=(place, position)))
    if decoder.embedding_norm:
        place = outside.normalized(decoder.embedding_norm, place, decoder.width, part="embedding_norm")
    return place


def _rows_of(shapes: Shapes, name: str) -> int:
    """The first dimension of a stored matrix. Raises `Unreadable` where there is none."""
    shape = shapes.get(name)
    if shape is None or len(shape) != 2:
        raise Unreadable(f"there is no matrix {name}")
    return shape[0]


def _head(outside: Blocks, decoder: Decoder, prefix: str, stream: int) -> str | None:
    """Add the output head; returns the name of its stored tensor, None where it is the embedding's alone."""
    embedding, graph = prefix + decoder.embedding + ".weight", outside.graph
    width = decoder.embedding_width or decoder.width
    rows = outside.shapes[embedding][0]
    names = (decoder.head.name, *decoder.head_names)
    head = next((one for one in names if one + ".weight" in outside.shapes), names[0])
    reads: Axis | None = None if decoder.output_projection else "columns"
    name = head + ".weight"
    if name in outside.shapes:
        rows = _rows_of(outside.shapes, name)
        weight, stored = outside.take(name, (rows, width), part="head", reads=reads), name
        outside.bias_known(decoder.head, name)
    elif decoder.tied:
        weight, stored = Weight(embedding), None
    else:
        raise Unreadable(f"the head is not tied, and there is no {name}")
    bias = outside.bias(replace(decoder.head, name=head), rows, part="head", writes=None)
    graph.add(Linear(width=rows, layer=None, says="lm_head", x=stream, weight=weight, bias=bias))
    return stored


def _block(blocks: Blocks, layer: Layer, stream: int, width: int) -> int:
    if layer.order == "parallel":
        return _parallel(blocks, layer, stream, width)
    for half, norm, post in (
        ("attention", layer.attention_norm, layer.attention_post_norm),
        ("mlp", layer.mlp_norm, layer.mlp_post_norm),
    ):
        after = layer.order == "after"
        read = blocks.normalized(norm, stream, width, part=f"{half}_norm") if norm and not after else stream
        out = _half(blocks, layer, half, read, width)
        if post:
            out = blocks.normalized(post, out, width, part=f"{half}_post_norm")
        stream = blocks.added(read if layer.stream_from_norm else stream, out, half)
        if norm and after:
            stream = blocks.normalized(norm, stream, width, part=f"{half}_norm")
    return stream


def _parallel(blocks: Blocks, layer: Layer, stream: int, width: int) -> int:
    attention_input = stream
    if layer.attention_norm:
        attention_input = blocks.normalized(layer.attention_norm, stream, width, part="attention_norm")
    mlp_input = attention_input
    if layer.mlp_norm:
        mlp_input = blocks.normalized(layer.mlp_norm, stream, width, part="mlp_norm")
    out = _half(blocks, layer, "attention", attention_input, width)
    stream = blocks.added(stream, out, "attention")
    return blocks.added(stream, _half(blocks, layer, "mlp", mlp_input, width), "mlp")


def _half(blocks: Blocks, layer: Layer, half: str, read: int, width: int) -> int:
    return (
        attention(blocks, layer.attention, read, width) if half == "attention" else mlp(blocks, layer.mlp, read, width)
    )
