"""The dataflow of a model: which stored array acts on what, from the embedding to the logits.

A graph is a list of nodes in the order of computation; a node names its inputs by their places in that list. Each node
gives one vector of `width` channels a token. Multipliers that no tensor holds (the square root of the hidden size, a
logit scale) are left out: they are the same before and after any change of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Activate",
    "Attend",
    "Channels",
    "Clip",
    "Graph",
    "Join",
    "Linear",
    "Lookup",
    "Mix",
    "Node",
    "NormKind",
    "Normalize",
    "Product",
    "Route",
    "Softcap",
    "Sum",
    "Weight",
]

Indices = NDArray[np.int64]
NormKind = Literal["rms", "layer", "l2"]


@dataclass(frozen=True, slots=True)
class Weight:
    """A stored array as the maths reads it: a matrix [outputs, inputs], or a vector."""

    tensor: str
    transposed: bool = False
    """Whether it is stored [inputs, outputs], as in GPT-2's Conv1D."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One step of the computation."""

    width: int
    """Channels of its output."""
    layer: int | None
    """The block it is in; None outside the blocks."""
    says: str
    """What it is, in words for a person: `q_proj`, `the softmax of the attention`."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The nodes it reads."""
        return ()

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The stored arrays it reads."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lookup(Node):
    """One row of a table [rows, channels], chosen by the token or its position."""

    table: Weight
    by: Literal["token", "position"] = "token"

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The table."""
        return (self.table,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linear(Node):
    """weight · x + bias."""

    x: int
    weight: Weight
    bias: Weight | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """x."""
        return (self.x,)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The weight, and the bias if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Normalize(Node):
    """x brought to unit scale in groups of channels, then weight · x + bias."""

    x: int
    kind: NormKind
    """rms: by the root of the mean square; layer: mean removed first; l2: by the length."""
    group: int
    """Channels that are normalised together; `width` where all are."""
    weight: Weight | None = None
    """A vector as long as `width`, or as long as `group` and the same for every group."""
    bias: Weight | None = None
    one_plus: bool = False
    """Whether the stored weight w acts as 1 + w."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """x."""
        return (self.x,)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Those of weight and bias that are there."""
        return tuple(weight for weight in (self.weight, self.bias) if weight is not None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activate(Node):
    """A function of each channel by itself: `silu`, `gelu`, `relu`, `relu2` (relu squared), `sigmoid`, ..."""

    x: int
    function: str

    @property
    def inputs(self) -> tuple[int, ...]:
        """x."""
        return (self.x,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip(Node):
    """Each channel limited to a fixed range around 0."""

    x: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """x."""
        return (self.x,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Softcap(Node):
    """c · tanh(x / c): a fixed increasing function of each channel."""

    x: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """x."""
        return (self.x,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product(Node):
    """x · y, channel by channel; a y of one channel multiplies all of x."""

    x: int
    y: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """x and y."""
        return (self.x, self.y)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sum(Node):
    """The sum of its terms: above all the residual stream."""

    terms: tuple[int, ...]
    stream: bool = True
    """Whether the sum is the residual stream."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The terms."""
        return self.terms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Channels(Node):
    """Some channels of x, in a given order, possibly repeated."""

    x: int
    indices: Indices

    @property
    def inputs(self) -> tuple[int, ...]:
        """x."""
        return (self.x,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Join(Node):
    """The channels of several nodes one after the other."""

    parts: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The parts."""
        return self.parts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attend(Node):
    """softmax(q · k / constant) · v, head by head. Channels are laid out head after head."""

    query: int
    key: int
    value: int
    heads: int
    """Query heads."""
    key_value_heads: int
    """Each is shared by heads / key_value_heads query heads that follow one another."""
    planes: Indices
    """[n, 2]: the pairs of dimensions of a head that are rotated with the position; empty without rotary positions."""
    sinks: bool = False
    """Whether a learned logit that belongs to no key takes part in the softmax."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Query, key and value."""
        return (self.query, self.key, self.value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route(Node):
    """The weights of the experts for a token, from the router's logits."""

    logits: int
    scoring: Literal["softmax", "sigmoid"]
    top: int
    """How many experts a token is sent to."""
    renormalized: bool
    """Whether the weights of the chosen experts are made to sum to one."""
    correction: Weight | None = None
    """A bias that takes part in the choice of experts, but not in their weights."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The router's logits."""
        return (self.logits,)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The correction, if there is one."""
        return () if self.correction is None else (self.correction,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mix(Node):
    """The outputs of the experts, weighted by the route."""

    route: int
    experts: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The route and the experts."""
        return (self.route, *self.experts)


@dataclass
class Graph:
    """Nodes in the order of computation; the last one gives the logits."""

    nodes: list[Node] = field(default_factory=list)

    def add(self, node: Node) -> int:
        """Append a node; returns its place."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @cached_property
    def readers(self) -> dict[str, tuple[int, ...]]:
        """By the name of a tensor: the nodes that read it. Only for a finished graph."""
        found: dict[str, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for weight in node.weights:
                found.setdefault(weight.tensor, []).append(place)
        return {name: tuple(places) for name, places in found.items()}

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """By place of a node: the nodes that read its output. Only for a finished graph."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for place, node in enumerate(self.nodes):
            for source in dict.fromkeys(node.inputs):
                found[source].append(place)
        return tuple(map(tuple, found))
