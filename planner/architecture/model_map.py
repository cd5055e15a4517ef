"""What a checkpoint's tensors are to one another: layers, parts, heads, tied copies, and the dataflow between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.architecture.decoder import Decoder
from planner.architecture.graph import Graph

__all__ = ["Axis", "Band", "ModelMap", "Parameter", "unknown_map"]

Axis = Literal["rows", "columns"]
"""An index of a stored matrix; a vector is one row, so its only index is `columns`."""


@dataclass(frozen=True, eq=False)
class Band:
    """Heads or neurons of a tensor: unit i is the rows (or columns) `indices[i]`."""

    part: str
    """query, key, value, output; gate, up, down."""
    unit: Literal["head", "neuron"]
    axis: Axis
    indices: NDArray[np.int64]
    """[units, rows or columns a unit]."""


@dataclass(frozen=True)
class Parameter:
    """One stored tensor and its place in the model."""

    name: str
    layer: int | None
    part: str
    """What it does in any family's words: query, key, value, output, gate, up, down, router, attention_norm, mlp_norm,
    embedding, head, ...; `query+key+value` and `gate+up` where one tensor does several; `.bias` for a bias."""
    reads: Axis | None = None
    """The index that runs over the residual stream, for a matrix whose input is the (normalised) stream."""
    writes: Axis | None = None
    """The index that runs over the residual stream, for a tensor whose output goes (perhaps normalised) into it."""
    bands: tuple[Band, ...] = ()
    expert: int | None = None
    bias: str | None = None
    """For the weight of a linear map: the name its bias has or would have."""
    bias_flag: str | None = None
    """The key of config.json that decides whether it has one; None: no key does."""
    transposed: bool = False
    """Stored [inputs, outputs]."""


@dataclass
class ModelMap:
    """The map of one checkpoint; one without a graph knows only why it knows nothing."""

    family: str | None
    """The model type of the declaration it was made by; None where there is none that fits."""
    reason: str = ""
    """Why nothing is known, for an unknown map."""
    decoder: Decoder | None = None
    graph: Graph | None = None
    parameters: dict[str, Parameter] = field(default_factory=dict)
    """Every tensor that the graph reads, and a stored copy of a tied head."""
    unread: dict[str, str] = field(default_factory=dict)
    """Tensors that no loader reads, and why."""
    read_elsewhere: dict[str, str] = field(default_factory=dict)
    """Tensors that only some loaders read, and which."""
    unmapped: tuple[str, ...] = ()
    """Tensors that the family's declaration does not account for."""
    embedding: str | None = None
    """Name of the tensor of token embeddings."""
    head: str | None = None
    """Name of the stored tensor of the output head; None where only the embedding is stored, for a tied head."""
    own_code: bool = False
    """Whether config.json points to code of its own (`auto_map`), which loaders run only if told to trust it; the map
    is that of the class that they bring."""

    @property
    def known(self) -> bool:
        """Whether there is a dataflow to reason about."""
        return self.graph is not None

    @property
    def tied(self) -> bool:
        """Whether the configuration ties the head to the embedding."""
        return self.decoder is not None and self.decoder.tied

    def in_layer(self, layer: int | None, *parts: str) -> Iterator[Parameter]:
        """The parameters of a layer with one of these parts, in the order of the graph."""
        return (p for p in self.parameters.values() if p.layer == layer and (not parts or p.part in parts))


def unknown_map(reason: str, family: str | None = None) -> ModelMap:
    """A map that knows nothing, and why."""
    return ModelMap(family=family, reason=reason)


def sorted_out(names: Mapping[str, object], patterns: tuple[str, ...], why: str) -> dict[str, str]:
    """Those of `names` that match one of the patterns, each with the reason."""
    return {name: why for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
