"""What the rules may ask, and what they keep for the proof: events on a change's way, and what only the data decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from planner.architecture.graph import Graph, Weight
from planner.effects.changes import Change
from planner.effects.factors import Factors

__all__ = ["Event", "Facts"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a change on its way, for the proof that a person reads."""

    place: int
    """The node."""
    kind: str
    """cancelled, centred, softmax, compensated, blocked, chosen: the change, or a part of it, ends here.
    curve, clipped, mixed, bias, branch, stream, temperature, level: from here on it is more than a factor."""
    factor: float | None = None
    """The factor that met it, where there is one."""


@dataclass
class Facts:
    """What the rules may ask."""

    graph: Graph
    changes: Mapping[str, Change]
    """By the name of the tensor."""
    zero: frozenset[str] = frozenset()
    """Tensors whose elements are all zero."""
    alias: Mapping[str, str] = field(default_factory=dict)
    """Tensors in whose place a loader reads another."""
    hopeful: bool = False
    """Whether what only the data decide is taken to leave everything as it was, rather than to change anything."""
    events: list[Event] = field(default_factory=list)
    doubts: list[Event] = field(default_factory=list)
    """What only the data decide: `choice` of experts; a `small`, `large` or `measured` factor in a
    normaliser; whether what is added is `level` within each head."""

    @cached_property
    def measured(self) -> bool:
        """Whether some factor is not known as a number."""
        return any(change.measured for change in self.changes.values())

    def change(self, weight: Weight) -> Change | None:
        """What becomes of a stored array, in the orientation of the maths; None: nothing."""
        found = self.changes.get(self.alias.get(weight.tensor, weight.tensor))
        return found.turned() if found is not None and weight.transposed else found

    def is_zero(self, weight: Weight) -> bool:
        """Whether a stored array is all zeros and stays so."""
        name = self.alias.get(weight.tensor, weight.tensor)
        return name in self.zero and name not in self.changes

    def tell(self, place: int, kind: str, factor: Factors | None = None) -> None:
        """Keep an event for the proof."""
        self.events.append(Event(place, kind, factor if isinstance(factor, float) else None))

    def doubt(self, place: int, kind: str, factor: Factors | None = None) -> None:
        """Keep what only the data decide."""
        self.doubts.append(Event(place, kind, factor if isinstance(factor, float) else None))
