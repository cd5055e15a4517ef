"""The vectors of single units in the residual stream: what they write to it, and what they read from it.

A neuron writes a column of the matrix that leads out of its MLP, and reads rows of those that lead in. A head moves
what its value matrix reads to where its output matrix writes; of that product (the OV circuit of Elhage et al. 2021)
the leading singular direction stands for the head. A channel of the stream is a unit vector. A row of the embedding is
read by its length alone, for cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.architecture import Band, ModelMap, Parameter
from planner.architecture.graph import Activate, Attend, Linear, Normalize, Product
from planner.plain_text import plain
from planner.words.direct_paths import DirectPaths, Step
from planner.words.stored_matrices import MOST_ELEMENTS, Floats, Indices, StoredMatrices, WordsUnknown
from planner.words.vocabulary_scores import GATES, Question

__all__ = ["Unit", "UnitKind", "UnitVectors", "vectors_of"]

UnitKind = Literal["neuron", "head", "channel", "token"]


@dataclass(frozen=True)
class Unit:
    """A part of a model that is a vector in the residual stream, or two."""

    kind: UnitKind
    """neuron: of an MLP. head: a query head. channel: of the residual stream. token: a row of the embedding."""
    layer: int | None
    """The block it is in. For a channel: after which block it is looked at, None after the last. None for a token."""
    index: int
    """The neuron's, the query head's or the channel's number, or the token's id; from 0."""
    expert: int | None = None
    """For a neuron of one expert among several, its number; None for a plain MLP and for the shared experts."""


@dataclass(frozen=True, eq=False)
class UnitVectors:
    """The vectors of one unit, as far as it has them."""

    writes: Floats | None = None
    """[channels in front of the head]."""
    question: Question | None = None
    """How its reading scores the rows of the embedding."""
    share: float | None = None
    """For a head: the part of the squared Frobenius norm of its OV matrix that the direction holds."""
    note: str | None = None
    """Why there are no vectors, or what to know about them."""


def vectors_of(units: Sequence[Unit], model: ModelMap, paths: DirectPaths, stored: StoredMatrices) -> list[UnitVectors]:
    """The vectors of each unit, in the order of `units`; a unit that has none gets a note that tells why."""
    found = [UnitVectors()] * len(units)
    # The units of one matrix together: some columns of it cost a pass over all of it.
    groups: dict[tuple[UnitKind, int | None, int | None], list[int]] = {}
    for place, unit in enumerate(units):
        groups.setdefault((unit.kind, unit.layer, unit.expert), []).append(place)
    for (kind, layer, expert), places in groups.items():
        find = {"neuron": _neurons, "head": _heads, "channel": _channels, "token": _tokens}[kind]
        indices = [units[place].index for place in places]
        try:
            vectors = find(_Place(model, paths, stored, layer, expert), indices)
        except WordsUnknown as error:
            vectors = [UnitVectors(note=str(error)) for _ in indices]
        for place, one in zip(places, vectors, strict=True):
            found[place] = one
    return found


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the units of one group are."""

    model: ModelMap
    paths: DirectPaths
    stored: StoredMatrices
    layer: int | None
    expert: int | None

    def writer(self, unit: Literal["head", "neuron"], part: str) -> tuple[Parameter, Band, int, Linear]:
        """The matrix that writes for the units: its parameter, their band, its node's place and its node."""
        beside = set()
        for parameter in self.model.in_layer(self.layer):
            for band in parameter.bands:
                if (band.unit, band.part) == (unit, part):
                    if parameter.expert == self.expert:
                        (place, *_) = self.paths.graph.readers[parameter.name]
                        node = self.paths.graph.nodes[place]
                        assert isinstance(node, Linear), "bands that are written from belong to matrices"
                        return parameter, band, place, node
                    beside.add(parameter.expert)
        where = "outside the layers" if self.layer is None else f"in layer {self.layer}"
        if self.expert is not None:
            raise WordsUnknown(f"there is no {unit} {where} that belongs to expert {self.expert}")
        if beside:
            raise WordsUnknown(f"the {unit}s {where} belong to {len(beside)} experts: name one")
        raise WordsUnknown(f"there are no {unit}s {where}")

    def written(self, parameter: Parameter, band: Band, units: Indices) -> Floats:
        """[channels of the units, channels of the stream]: what each of their channels adds to the stream."""
        chosen = band.indices[units].reshape(-1)
        if band.axis == "rows":
            return self.stored.rows(parameter.name, chosen)
        return self.stored.columns(parameter.name, chosen).T


def _within(indices: Sequence[int], count: int, what: str) -> tuple[list[UnitVectors], list[int]]:
    """A note for every unit, and the places of those that exist."""
    vectors = [UnitVectors(note=f"there are {count:,} {what}, numbered from 0") for _ in indices]
    return vectors, [place for place, index in enumerate(indices) if 0 <= index < count]


def _batches(places: list[int], elements: int) -> list[list[int]]:
    """The places in batches whose units have, with so many elements each, no more than are held at once."""
    size = max(1, MOST_ELEMENTS // max(elements, 1))
    return [places[first : first + size] for first in range(0, len(places), size)]


def _neurons(at: _Place, indices: Sequence[int]) -> list[UnitVectors]:
    parameter, band, writer, node = at.writer("neuron", "down")
    vectors, places = _within(indices, len(band.indices), "neurons here")
    inner = at.paths.graph.nodes[node.x]
    note = gate = None
    if isinstance(inner, Product) and isinstance(opened := at.paths.graph.nodes[inner.y], Activate):
        reads = (opened.x, inner.x) if opened.function in GATES else (opened.x,)
        gate = opened.function if opened.function in GATES else None
        note = None if gate else "the gate's activation is not known here: what is read is the argument of the gate"
    elif isinstance(inner, Activate):
        reads = (inner.x,)
    else:
        raise WordsUnknown(f"{plain(inner.says)} lies between what the neurons read and what they write")
    for batch in _batches(places, 3 * at.model.decoder.width if at.model.decoder else 1):
        units = np.array([indices[place] for place in batch], dtype=np.int64)
        channels = band.indices[units].reshape(-1)
        writes = at.paths.to_head(writer, at.written(parameter, band, units))
        read = [at.paths.reading(source, channels) for source in reads]
        steps = at.paths.from_embedding(read[0].place)
        for number, place in enumerate(batch):
            rows = np.stack([one.matrix[number] for one in read])
            constants = np.array([one.bias[number] for one in read])
            vectors[place] = UnitVectors(writes[number], Question(steps, rows, constants, gate), note=note)
    return vectors


def _heads(at: _Place, indices: Sequence[int]) -> list[UnitVectors]:
    parameter, band, writer, node = at.writer("head", "output")
    vectors, places = _within(indices, len(band.indices), "query heads here")
    norms, source = [], at.paths.graph.nodes[node.x]
    while isinstance(source, Normalize):
        norms.append(source)
        source = at.paths.graph.nodes[source.x]
    if not isinstance(source, Attend):
        raise WordsUnknown(f"{plain(source.says)} lies between the attention and its output")
    width, group = band.indices.shape[1], source.heads // source.key_value_heads
    for batch in _batches(places, 2 * width * (at.model.decoder.width if at.model.decoder else 1)):
        heads = np.array([indices[place] for place in batch], dtype=np.int64)
        channels = band.indices[heads].reshape(-1)
        outputs = at.written(parameter, band, heads)
        for norm in norms:
            outputs = outputs * at.paths.channel_factors(norm, channels)[:, None]
        rows = (heads // group)[:, None] * width + np.arange(width)
        values = at.paths.reading(source.value, rows.reshape(-1))
        steps = at.paths.from_embedding(values.place)
        for number, place in enumerate(batch):
            mine = slice(number * width, (number + 1) * width)
            found = _leading(outputs[mine], values.matrix[mine])
            if found is None:
                vectors[place] = UnitVectors(note="its output times value matrix is zero, or not finite")
                continue
            written, read, share = found
            question = Question(steps, read[None], np.zeros(1))
            vectors[place] = UnitVectors(at.paths.to_head(writer, written[None])[0], question, share=share)
    return vectors


def _leading(output: Floats, value: Floats) -> tuple[Floats, Floats, float] | None:
    """The leading singular triple of outputᵀ · value, from [width, stream] each: s·u, v, and s² / Σ s².

    Both are cut to triangles first (output = Q·R), so that only a matrix [width, width] is decomposed. None where the
    product is zero or not finite.
    """
    if not (np.isfinite(output).all() and np.isfinite(value).all()):
        return None
    left, left_triangle = np.linalg.qr(output.T)
    right, right_triangle = np.linalg.qr(value.T)
    middle = left_triangle @ right_triangle.T
    if not np.isfinite(middle).all() or not middle.any():
        return None
    u, s, v = np.linalg.svd(middle)
    return s[0] * (left @ u[:, 0]), right @ v[0], float(s[0] ** 2 / np.sum(s**2))


def _channels(at: _Place, indices: Sequence[int]) -> list[UnitVectors]:
    place_after = at.paths.after(at.layer)
    count = at.paths.graph.nodes[place_after].width
    vectors, places = _within(indices, count, "channels")
    for batch in _batches(places, count):
        units = np.zeros((len(batch), count))
        units[np.arange(len(batch)), [indices[place] for place in batch]] = 1
        for place, written in zip(batch, at.paths.to_head(place_after, units), strict=True):
            vectors[place] = UnitVectors(written)
    return vectors


def _tokens(at: _Place, indices: Sequence[int]) -> list[UnitVectors]:
    count, width = at.stored.shape(at.paths.embedding)
    vectors, places = _within(indices, count, "rows of the embedding")
    length = Step("l2")
    for batch in _batches(places, width):
        rows = at.stored.rows(at.paths.embedding, [indices[place] for place in batch])
        for place, row in zip(batch, rows, strict=True):
            if not np.isfinite(row).all() or not row.any():
                vectors[place] = UnitVectors(note="its row of the embedding is zero, or not finite")
            else:
                vectors[place] = UnitVectors(question=Question((length,), length.unscaled(row[None]), np.zeros(1)))
    return vectors
