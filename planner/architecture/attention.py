"""Attention as nodes of the graph: separate, fused and latent projections, down to what is added to the stream."""

from __future__ import annotations

import numpy as np

from planner.architecture.blocks import Blocks, Indices, units
from planner.architecture.config import Unreadable
from planner.architecture.decoder import Attention, LatentAttention
from planner.architecture.graph import Attend, Clip, Join
from planner.architecture.model_map import Band

__all__ = ["attention"]


def attention(blocks: Blocks, spec: Attention | LatentAttention, x: int, width: int) -> int:
    """The attention, from the (normalised) stream at node `x` to what is added to the stream."""
    if isinstance(spec, LatentAttention):
        return _latent(blocks, spec, x, width)
    if spec.heads % spec.key_value_heads:
        raise Unreadable(f"{spec.heads} query heads cannot share {spec.key_value_heads} key/value heads")
    counts = {"query": spec.heads, "key": spec.key_value_heads, "value": spec.key_value_heads}
    places = _separate(blocks, spec, x, counts) if spec.fused is None else _fused(blocks, spec, x, counts)
    if spec.clip and not spec.clip_after_norm:
        places = _clipped(blocks, places)
    for part, norm in (("query", spec.query_norm), ("key", spec.key_norm), ("value", spec.value_norm)):
        if norm:
            size = counts[part] * spec.width
            places[part] = blocks.normalized(norm, places[part], size, part=f"{part}_norm", heads=counts[part])
    if spec.clip and spec.clip_after_norm:
        places = _clipped(blocks, places)
    mixed = blocks.graph.add(
        Attend(
            width=spec.heads * spec.width,
            layer=blocks.layer,
            says="the attention",
            query=places["query"],
            key=places["key"],
            value=places["value"],
            heads=spec.heads,
            key_value_heads=spec.key_value_heads,
            planes=_planes(0, spec.rotary, spec.pairing),
            sinks=spec.sinks,
        )
    )
    if spec.output_norm:
        mixed = blocks.normalized(
            spec.output_norm, mixed, spec.heads * spec.width, part="output_norm", heads=spec.heads
        )
    bands = (Band("output", "head", "columns", units(spec.heads, spec.width)),)
    return blocks.projected(spec.output, mixed, width, part="output", writes=True, in_bands=bands)


def _clipped(blocks: Blocks, places: dict[str, int]) -> dict[str, int]:
    """Queries, keys and values, each limited to a range."""
    widths = {part: blocks.graph.nodes[place].width for part, place in places.items()}
    return {
        part: blocks.graph.add(Clip(width=widths[part], layer=blocks.layer, says=f"the clip of the {part}", x=place))
        for part, place in places.items()
    }


def _separate(blocks: Blocks, spec: Attention, x: int, counts: dict[str, int]) -> dict[str, int]:
    places = {}
    for part, projection in (("query", spec.query), ("key", spec.key), ("value", spec.value)):
        if projection is None:
            raise Unreadable(f"the family declares no {part} projection")
        blocks.expect(projection, counts[part] * spec.width, blocks.graph.nodes[x].width)
        bands = (Band(part, "head", "rows", units(counts[part], spec.width)),)
        places[part] = blocks.projected(
            projection, x, counts[part] * spec.width, part=part, reads=True, out_bands=bands
        )
    return places


def _fused(blocks: Blocks, spec: Attention, x: int, counts: dict[str, int]) -> dict[str, int]:
    assert spec.fused is not None
    blocks.expect(spec.fused.projection, sum(counts.values()) * spec.width, blocks.graph.nodes[x].width)
    rows = _fused_rows(spec.heads, spec.key_value_heads, spec.width, spec.fused.order)
    bands = tuple(Band(part, "head", "rows", rows[part].reshape(counts[part], spec.width)) for part in counts)
    total = sum(counts.values()) * spec.width
    place = blocks.projected(spec.fused.projection, x, total, part="query+key+value", reads=True, out_bands=bands)
    return {part: blocks.channels(place, rows[part]) for part in counts}


def _latent(blocks: Blocks, spec: LatentAttention, x: int, width: int) -> int:
    heads, plain, rotary, value = spec.heads, spec.plain, spec.rotary, spec.value_width
    head = plain + rotary
    blocks.expect(spec.key_value_up, heads * (plain + value), spec.latent)
    blocks.expect(spec.key_value_down, spec.latent + rotary, blocks.graph.nodes[x].width)
    if spec.query:
        blocks.expect(spec.query, heads * head, blocks.graph.nodes[x].width)
    elif spec.query_up and spec.query_rank:
        blocks.expect(spec.query_up, heads * head, spec.query_rank)
    query_bands = (Band("query", "head", "rows", units(heads, head)),)
    if spec.query:
        query = blocks.projected(spec.query, x, heads * head, part="query", reads=True, out_bands=query_bands)
    else:
        if not (spec.query_rank and spec.query_down and spec.query_norm and spec.query_up):
            raise Unreadable("the family declares neither a query projection nor its three parts")
        rank = spec.query_rank
        down = blocks.projected(spec.query_down, x, rank, part="query_down", reads=True)
        normed = blocks.normalized(spec.query_norm, down, rank, part="query_down_norm")
        query = blocks.projected(spec.query_up, normed, heads * head, part="query", out_bands=query_bands)
    packed = blocks.projected(spec.key_value_down, x, spec.latent + rotary, part="key_value_down", reads=True)
    latent = blocks.channels(packed, np.arange(spec.latent))
    shared = blocks.channels(packed, np.arange(spec.latent, spec.latent + rotary))
    normed = blocks.normalized(spec.key_value_norm, latent, spec.latent, part="key_value_norm")
    rows = units(heads, plain + value)
    bands = (
        Band("key", "head", "rows", rows[:, :plain]),
        Band("value", "head", "rows", rows[:, plain:]),
    )
    unpacked = blocks.projected(
        spec.key_value_up, normed, heads * (plain + value), part="key_value_up", out_bands=bands
    )
    both = blocks.graph.add(
        Join(
            width=heads * (plain + value) + rotary, layer=blocks.layer, says="the keys and values",
            parts=(unpacked, shared),
        )
    )  # fmt: skip
    turning = np.arange(heads * (plain + value), heads * (plain + value) + rotary)
    key_rows = np.concatenate([np.concatenate([rows[h, :plain], turning]) for h in range(heads)])
    mixed = blocks.graph.add(
        Attend(
            width=heads * value,
            layer=blocks.layer,
            says="the attention",
            query=query,
            key=blocks.channels(both, key_rows),
            value=blocks.channels(both, rows[:, plain:].reshape(-1)),
            heads=heads,
            key_value_heads=heads,
            planes=_planes(plain, rotary, spec.pairing),
        )
    )
    out_bands = (Band("output", "head", "columns", units(heads, value)),)
    return blocks.projected(spec.output, mixed, width, part="output", writes=True, in_bands=out_bands)


def _planes(first: int, rotary: int, pairing: str) -> Indices:
    """The pairs of dimensions of a head that are rotated together."""
    if rotary % 2:
        raise Unreadable(f"{rotary} rotated channels do not make pairs")
    half = np.arange(rotary // 2, dtype=np.int64)
    pairs = (half, half + rotary // 2) if pairing == "halves" else (2 * half, 2 * half + 1)
    return first + np.stack(pairs, axis=1)


def _fused_rows(heads: int, key_value_heads: int, width: int, order: str) -> dict[str, Indices]:
    """The rows of a fused projection that give queries, keys and values, head after head."""
    if order == "blocks":
        ends = np.cumsum([heads * width, key_value_heads * width, key_value_heads * width])
        query, key, value = np.split(np.arange(ends[2], dtype=np.int64), ends[:2])
        return {"query": query, "key": key, "value": value}
    shared = heads // key_value_heads
    rows = np.arange(key_value_heads * (shared + 2) * width, dtype=np.int64).reshape(key_value_heads, shared + 2, width)
    return {
        "query": rows[:, :shared].reshape(-1),
        "key": rows[:, shared].reshape(-1),
        "value": rows[:, shared + 1].reshape(-1),
    }
