"""Follow changed tensors through a model's dataflow, from where they are read to the logits.

An abstract interpretation: instead of numbers, the graph is run on what is known of each activation relative to the
unchanged model. Only nodes that a change reaches are visited.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from planner.architecture.graph import Graph, Node, Sum
from planner.effects.changes import Change
from planner.effects.facts import Event, Facts
from planner.effects.transfer import transfer
from planner.effects.values import ANYTHING, SAME, Value

__all__ = ["Outcome", "interpret"]


@dataclass(frozen=True)
class Outcome:
    """What the changes come to."""

    logits: Value
    events: tuple[Event, ...]
    """What happened on the way, in the order of computation."""
    doubts: tuple[Event, ...] = ()
    """What only the data decide: the outcome is one of two, and the other is that of the other `hopeful`."""


def interpret(
    graph: Graph,
    changes: Mapping[str, Change],
    *,
    zero: frozenset[str] = frozenset(),
    alias: Mapping[str, str] | None = None,
    hopeful: bool = False,
) -> Outcome:
    """What is known of the logits after `changes` (by tensor), compared with before.

    `zero` names tensors that hold nothing but zeros; `alias` names tensors in whose place the loader reads another.
    `hopeful`: what only the data decide is taken to leave everything as it was; otherwise, to change anything.
    """
    facts = Facts(graph, changes, zero, alias or {}, hopeful)
    waiting = _first_readers(graph, changes, facts.alias)
    heapq.heapify(waiting)
    seen = set(waiting)
    values: dict[int, Value] = {}
    logits = len(graph.nodes) - 1
    stops = not any(change.zeroes for change in changes.values())
    while waiting:
        place = heapq.heappop(waiting)
        node = graph.nodes[place]
        value = transfer(place, [values.get(source, SAME) for source in node.inputs], facts)
        if value.same:
            continue
        if stops and _lost(node, value):
            return Outcome(ANYTHING, tuple(facts.events), tuple(facts.doubts))
        values[place] = value
        for consumer in graph.consumers[place]:
            if consumer not in seen:
                seen.add(consumer)
                heapq.heappush(waiting, consumer)
    return Outcome(values.get(logits, SAME), tuple(facts.events), tuple(facts.doubts))


def _lost(node: Node, value: Value) -> bool:
    """Whether the whole residual stream may be anything: all that follows reads it, and only zeros could end that."""
    return isinstance(node, Sum) and node.stream and isinstance(value.factor, float) and isnan(value.factor)


def _first_readers(graph: Graph, changes: Mapping[str, Change], alias: Mapping[str, str]) -> list[int]:
    read_as = [name for name in changes if name not in alias]
    read_as += [name for name, other in alias.items() if other in changes]
    return list({place for name in read_as for place in graph.readers.get(name, ())})
