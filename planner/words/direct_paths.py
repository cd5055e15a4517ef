"""The direct path of a model: from the embedding along the residual stream to the logits, past every block.

What a unit writes reaches the logits through the sums of the stream, the normalisers on the way, and the head; what it
reads is the embedding through the same sums and normalisers. Paths through later blocks are left out. This is the view
of Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits") and of Geva et al. 2022 ("Transformer
Feed-Forward Layers Build Predictions by Promoting Concepts in the Vocabulary Space").

A normaliser divides by a scale that depends on the token. For what is written that scale is left out: a positive number
that all tokens share. What is left is linear: the mean over channels is removed (LayerNorm), and each channel
multiplied by the norm's weight. For what is read it is computed, from the embedding alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.architecture import ModelMap
from planner.architecture.graph import (
    Channels,
    Clip,
    Graph,
    Join,
    Linear,
    Lookup,
    Mix,
    Normalize,
    NormKind,
    Product,
    Sum,
    Weight,
)
from planner.plain_text import plain
from planner.words.stored_matrices import Floats, Indices, StoredMatrices, WordsUnknown

__all__ = ["DirectPaths", "Reading", "Step"]


@dataclass(frozen=True, eq=False)
class Step:
    """One normaliser or linear map on the way from the embedding: how it changes rows."""

    kind: NormKind | None = None
    """How rows are brought to unit scale; None for a linear map."""
    weight: Floats | None = None
    """[channels], what the normaliser multiplies by (1 + w where the family stores w); [outputs, inputs] of a map."""
    bias: Floats | None = None
    """[channels] or [outputs]."""

    def unscaled(self, rows: Floats) -> Floats:
        """The rows [tokens, channels] at unit scale, before weight and bias; a row of zeros stays one."""
        if self.kind is None:
            return rows
        if self.kind == "layer":
            rows = rows - rows.mean(axis=1, keepdims=True)
        squares = np.square(rows).sum(axis=1, keepdims=True)
        scale = np.sqrt(squares if self.kind == "l2" else squares / rows.shape[1])
        unscaled: Floats = np.divide(rows, scale, out=np.zeros_like(rows), where=scale != 0)
        return unscaled

    def of_rows(self, rows: Floats) -> Floats:
        """The rows [tokens, channels] after the step, without the normaliser's epsilon."""
        rows = self.unscaled(rows)
        if self.weight is not None:
            rows = rows @ self.weight.T if self.kind is None else rows * self.weight
        return rows if self.bias is None else rows + self.bias

    def of_written(self, vectors: Floats) -> Floats:
        """The part that is linear, of vectors [k, channels] that are added to the stream."""
        if self.kind is None:
            return vectors if self.weight is None else vectors @ self.weight.T
        if self.kind == "layer":
            vectors = vectors - vectors.mean(axis=1, keepdims=True)
        return vectors if self.weight is None else vectors * self.weight


@dataclass(frozen=True, eq=False)
class Reading:
    """A linear map from what is read at one place of the stream."""

    matrix: Floats
    """[channels, channels of the stream]."""
    bias: Floats
    """[channels]."""
    place: int
    """The node whose output is read."""


class DirectPaths:
    """The direct path of one model; arrays are read when they are needed first, and small ones are kept.

    Raises `WordsUnknown` where the model's map is unknown, or has another shape than a stream with blocks beside it.
    """

    def __init__(self, model: ModelMap, stored: StoredMatrices) -> None:
        if model.graph is None:
            raise WordsUnknown(f"the map of the model is not known: {plain(model.reason)}")
        self._model, self._stored = model, stored
        self.graph: Graph = model.graph
        head = next(node for node in reversed(self.graph.nodes) if isinstance(node, Linear))
        self.head = head.weight
        """The matrix that gives the logits."""
        self._spine = list(reversed(self._down_from(head.x)))
        self._next = dict(zip(self._spine, self._spine[1:], strict=False))
        embedding = self.graph.nodes[self._spine[0]]
        assert isinstance(embedding, Lookup), "the spine ends there"
        self.embedding = embedding.table.tensor
        """Name of the token embedding."""
        self._steps: dict[int, Step | None] = {}

    def _down_from(self, place: int) -> list[int]:
        """The places of the stream from the head down to the embedding."""
        found = [place]
        while not isinstance(node := self.graph.nodes[found[-1]], Lookup):
            if isinstance(node, Sum):
                found.append(node.terms[0])  # the stream; what a block or a position adds comes after it
            elif isinstance(node, Normalize | Linear):
                found.append(node.x)
            else:
                raise WordsUnknown(f"no stream leads from the embedding to the head ({plain(node.says)} is between)")
        return found

    def after(self, layer: int | None) -> int:
        """The place of the stream after a layer; after the last one for None."""
        layers = {place: self.graph.nodes[place].layer for place in self._spine}
        inside = [place for place, one in layers.items() if one is not None and layer in (None, one)]
        if not inside:
            raise WordsUnknown("the model has no layers" if layer is None else f"there is no layer {layer}")
        return inside[-1]

    def to_head(self, place: int, vectors: Floats) -> Floats:
        """What vectors [k, channels], added to the output of the node at `place`, are in front of the head."""
        while True:
            if place in self._next or place == self._spine[-1]:
                following = self._next.get(place)
            else:
                (following, *others) = self.graph.consumers[place] or (None,)
                if following is None or others:
                    raise WordsUnknown(f"{plain(self.graph.nodes[place].says)} has no single way to the logits")
            if following is None:
                return vectors
            node = self.graph.nodes[following]
            if isinstance(node, Normalize | Linear):
                step = self._step(following)
                vectors = vectors if step is None else step.of_written(vectors)
            elif not isinstance(node, Sum | Mix | Product):
                raise WordsUnknown(f"{plain(node.says)} lies between the unit and the logits")
            place = following

    def from_embedding(self, place: int) -> tuple[Step, ...]:
        """The steps from the embedding's rows to the output of the node at `place`, the first one first."""
        steps = (self._step(one) for one in reversed(self._down_from(place)))
        return tuple(step for step in steps if step is not None)

    def reading(self, place: int, channels: Indices) -> Reading:
        """Some channels of the node at `place` as a linear map of what its block reads from the stream."""
        node = self.graph.nodes[place]
        if isinstance(node, Channels):
            return self.reading(node.x, node.indices[channels])
        if isinstance(node, Clip):
            return self.reading(node.x, channels)
        if isinstance(node, Join):
            start = 0
            for part in node.parts:
                end = start + self.graph.nodes[part].width
                if len(channels) and start <= channels.min() and channels.max() < end:
                    return self.reading(part, channels - start)
                start = end
        if isinstance(node, Normalize):
            inner = self.reading(node.x, channels)
            factors = self.channel_factors(node, channels)
            return Reading(factors[:, None] * inner.matrix, np.zeros(len(channels)), inner.place)
        if isinstance(node, Linear):
            matrix = self._outputs(node.weight, channels)
            if self._model.parameters[node.weight.tensor].reads is not None:
                bias = np.zeros(len(channels)) if node.bias is None else self._stored.vector(node.bias.tensor)[channels]
                return Reading(matrix, bias, node.x)
            inner = self.reading(node.x, np.arange(matrix.shape[1]))
            return Reading(matrix @ inner.matrix, np.zeros(len(channels)), inner.place)
        raise WordsUnknown(f"{plain(node.says)} lies between the stream and what the unit reads")

    def channel_factors(self, node: Normalize, channels: Indices) -> Floats:
        """[channels]: what a normaliser inside a block multiplies some of its channels by, its own scale left out."""
        if node.kind != "rms":
            raise WordsUnknown(f"{plain(node.says)} mixes the channels of heads")
        weight = self._norm_weight(node)
        return np.ones(len(channels)) if weight is None else weight[channels % len(weight)]

    def _outputs(self, weight: Weight, channels: Indices) -> Floats:
        """[channels, inputs]: what gives some outputs of a linear map."""
        if weight.transposed:
            return self._stored.columns(weight.tensor, channels).T
        return self._stored.rows(weight.tensor, channels)

    def _norm_weight(self, node: Normalize) -> Floats | None:
        if node.weight is None:
            return None
        return self._stored.vector(node.weight.tensor) + (1.0 if node.one_plus else 0.0)

    def _step(self, place: int) -> Step | None:
        """The step at a place of the stream; None where nothing changes but what is added."""
        if place not in self._steps:
            node = self.graph.nodes[place]
            step = None
            if isinstance(node, Normalize):
                bias = None if node.bias is None else self._stored.vector(node.bias.tensor)
                step = Step(node.kind, self._norm_weight(node), bias)
            elif isinstance(node, Linear):
                bias = None if node.bias is None else self._stored.vector(node.bias.tensor)
                step = Step(None, self._outputs(node.weight, np.arange(node.width)), bias)
            self._steps[place] = step
        return self._steps[place]
