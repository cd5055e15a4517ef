"""Verdicts as one sentence each, from what happened to a change on its way to the logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planner.architecture import Parameter
from planner.architecture.graph import Attend, Graph, Linear, Mix, Node, Normalize, Route, Softcap
from planner.architecture.roles import role_of
from planner.effects.factors import TOLERANCE, uniform
from planner.effects.facts import Event
from planner.effects.interpreter import Outcome
from planner.effects.types import Effect

__all__ = ["doubted", "explained", "named"]

_MOST = 3
"""Reasons, or names in a list, that are given in full."""


def named(changed: Sequence[Parameter]) -> str:
    """The roles of the changed tensors."""
    roles = list(dict.fromkeys(role_of(parameter.name).role for parameter in changed))
    return " with ".join(roles) if len(roles) <= _MOST else f"{roles[0]} with {len(roles) - 1} other roles"


def explained(
    graph: Graph,
    changed: Sequence[Parameter],
    outcome: Outcome,
    effect: Effect,
    *,
    rounded: bool,
    measured: bool = False,
) -> str:
    """Why the changes have that effect.

    `rounded`: rounding to a narrow dtype is left over where a factor cancels. `measured`: factors follow from the
    values, so that no number is given for them.
    """
    what = named(changed)
    if effect == "effective":
        return _effective(graph, what, changed, outcome, measured=measured)
    if effect == "invariant":
        reason = _invariant(graph, what, outcome.events)
    elif effect == "shifts_logits":
        reason = f"{what}: one number a token is added to all logits, which the softmax does not see"
    else:
        reason = _rescaling(graph, what, outcome, measured=measured)
    left = ["epsilon"] if any(event.kind == "cancelled" for event in outcome.events) else []
    left += ["rounding"] if rounded else []
    return f"{reason}; left over: {' and '.join(left)}" if left else reason


def doubted(graph: Graph, changed: Sequence[Parameter], doubt: Event) -> str:
    """Why nothing is claimed."""
    what, node = named(changed), graph.nodes[doubt.place]
    if doubt.kind == "choice":
        return f"{what}: only which experts are chosen could change, and that depends on the data"
    if doubt.kind == "level":
        return f"{what}: a LayerNorm takes one number out of each head; whether more is added, only the values tell"
    met = "a factor" if doubt.factor is None else f"a factor of {doubt.factor:.3g}"
    if doubt.kind == "measured":
        return f"{what} feeds {_normalizer(node)}, but how small the factor is, beside epsilon, only the values tell"
    if doubt.kind == "small":
        return f"{what} feeds {_normalizer(node)}, but {met} is so small that epsilon may show"
    return f"{what} feeds {_normalizer(node)}, but {met} is so large that half precision may overflow"


def _rescaling(graph: Graph, what: str, outcome: Outcome, *, measured: bool) -> str:
    factor = uniform(outcome.logits.factor)
    assert isinstance(factor, float), "a rescaling has one factor"
    parts = []
    if abs(factor - 1) > TOLERANCE:
        by = "one positive factor" if measured else f"{factor:.6g}"
        parts.append(f"all logits are multiplied by {by}")
    if outcome.logits.shift != "none":
        parts.append("one number a token is added to all logits")
    before = " before their cap" if isinstance(graph.nodes[-1], Softcap) else ""
    cancelled = _cancelled(graph, outcome.events)
    return f"{what}: {' and '.join(parts)}{before}, so the largest stays the largest{cancelled}"


def _invariant(graph: Graph, what: str, events: Sequence[Event]) -> str:
    reasons: dict[str, None] = {}
    undone = _listed(graph.nodes[e.place].says for e in events if _undone(graph, e))
    for event in events:
        node = graph.nodes[event.place]
        reason = (
            f"{undone} {'undo' if ' and ' in undone else 'undoes'} the factor"
            if _undone(graph, event)
            else _reason(node, event)
        )
        if reason:
            reasons[reason] = None
    found = list(reasons)
    if not found:
        return f"{what} reaches nothing that the logits depend on"
    if len(found) == 1 and events[0].kind == "cancelled" and " with " not in what:
        sign = "a positive factor" if (events[0].factor or 1) > 0 else "the size of a factor"
        return f"{what} feeds {_normalizer(graph.nodes[events[0].place])}; {sign} cancels"
    more = f"; and so on ({len(found) - _MOST} more)" if len(found) > _MOST else ""
    return f"{what}: {'; '.join(found[:_MOST])}{more}"


def _undone(graph: Graph, event: Event) -> bool:
    return event.kind == "compensated" and isinstance(graph.nodes[event.place], Linear)


def _reason(node: Node, event: Event) -> str:
    """What took a change, or a part of it, away."""
    match event.kind:
        case "cancelled":
            sign = "a positive factor" if (event.factor or 1) > 0 else "the size of a factor"
            return f"{_normalizer(node)}, cancels {sign}"
        case "centred" if isinstance(node, Normalize):
            return f"{_normalizer(node)}, takes away what is added to all channels alike"
        case "centred":
            return f"the inputs of {node.says} sum to zero, as a LayerNorm without weights leaves them"
        case "softmax" if isinstance(node, Route):
            return "one number is added to all of the router's logits, which its softmax does not see"
        case "softmax":
            return "the same is added to all scores of a query, which the softmax does not see"
        case "compensated" if isinstance(node, Attend):
            return "the factors on queries and keys cancel in their product"
        case "compensated":
            return f"the factors on the two sides of {node.says} cancel"
        case "chosen":
            return "the order of the experts stays, and the only one chosen has the weight one"
        case "blocked":
            return f"{node.says} is all zeros"
    return ""


def _effective(graph: Graph, what: str, changed: Sequence[Parameter], outcome: Outcome, *, measured: bool) -> str:
    rest = _cancelled(graph, outcome.events) + _tied(graph, changed)
    layers = {parameter.layer for parameter in changed}
    first = " (the first of several)" if len(layers) > 1 else ""
    for event in outcome.events:
        said = _mechanism(graph.nodes[event.place], event, first, measured=measured)
        if said:
            return f"{what}: {said}{rest}"
    factor = uniform(outcome.logits.factor)
    if not isinstance(factor, float):
        return f"{what}: the logits of different tokens no longer have the same factor{rest}"
    if factor > 0:
        return f"{what}: something else is added to each token's logit{rest}"
    if factor == 0:
        return f"{what}: all logits become zero{rest}"
    if factor < 0:
        by = "a negative factor" if measured else f"{factor:.6g}"
        return f"{what}: all logits are multiplied by {by}, which turns their order round{rest}"
    return f"{what}: no rule takes it away on its way to the logits{rest}"


def _mechanism(node: Node, event: Event, first: str, *, measured: bool) -> str:
    """What a change does where it stops being a mere factor; "" for an event that does not say."""
    where = "" if node.layer is None else f" in layer {node.layer}{first}"
    by = f"multiplied by {event.factor:.6g}" if event.factor is not None and not measured else "scaled"
    if event.factor is not None and measured:
        by = "multiplied by one factor"
    half = node.says.replace("the residual stream after ", "")
    match event.kind:
        case "temperature":
            return f"the scores of the attention{where} are {by}"
        case "level":
            return f"the scores of the attention{where} all become equal"
        case "branch" if isinstance(node, Mix):
            return f"the experts{where} no longer share one factor"
        case "branch" if event.factor == 0:
            return f"what {half} adds{where} is taken out"
        case "branch" if event.factor is None:
            return f"what {half} adds{where} no longer has the factor that the rest of the sum has"
        case "branch":
            return f"what {half} adds{where} is {by}, the rest of the sum is not"
        case "stream":
            return f"the residual stream is {by}, what {half} adds{where} is not"
        case "curve" if isinstance(node, Route):
            return f"the change meets the router{where}, whose weights do not scale with its logits"
        case "curve":
            return f"the change meets {node.says}{where}, a curve that does not scale with its input"
        case "clipped":
            return f"the change meets {node.says}{where}, which does not move with it"
        case "bias":
            return f"the weight of {node.says}{where} is {by}, its bias is not"
        case "mixed":
            return f"{node.says}{where} sums inputs whose factors differ"
    return ""


def _tied(graph: Graph, changed: Sequence[Parameter]) -> str:
    """That a table of tokens also makes the logits, where a changed one does."""
    last = next(place for place in reversed(range(len(graph.nodes))) if isinstance(graph.nodes[place], Linear))
    tied = any(p.part == "embedding" and last in graph.readers.get(p.name, ()) for p in changed)
    return "; the same rows make the logits, for the head is tied to them" if tied else ""


def _cancelled(graph: Graph, events: Iterable[Event]) -> str:
    names = [graph.nodes[event.place].says for event in events if event.kind == "cancelled"]
    return f"; what passes {_listed(names)} cancels there" if names else ""


def _listed(names: Iterable[str]) -> str:
    """Names one after the other, each once; the first few, and how many more."""
    once = list(dict.fromkeys(names))
    shown, more = once[:_MOST], len(once) - _MOST
    return " and ".join(shown) + (f" and {more} more" if more > 0 else "")


def _normalizer(node: Node) -> str:
    assert isinstance(node, Normalize)
    kind = {"rms": "an RMSNorm", "layer": "a LayerNorm", "l2": "a division by the length"}[node.kind]
    if node.says.isdigit():  # one of the norms that a head each has
        return f"the norm of each head, {kind}"
    return f"{node.says}, {kind}{' per head' if node.group < node.width else ''}"
