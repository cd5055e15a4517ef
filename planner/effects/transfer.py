"""How what is known of a node's inputs becomes what is known of its output: one function for each kind of node.

The rules hold for real numbers and any weights: a claim that nothing changes, or that all changes alike, is a theorem;
that a channel may be anything is not, it only says that no theorem here applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.architecture.graph import (
    Activate,
    Attend,
    Channels,
    Clip,
    Join,
    Linear,
    Lookup,
    Mix,
    Node,
    Normalize,
    Product,
    Route,
    Softcap,
    Sum,
)
from planner.effects.attending import attended
from planner.effects.changes import Added, Change
from planner.effects.factors import TOLERANCE, UNKNOWN, Factors, is_unknown, known_equal, times, uniform
from planner.effects.facts import Facts
from planner.effects.values import ANYTHING, SAME, Mask, Shift, Value, at

__all__ = ["SMALLEST", "transfer"]

_UNCHANGED = Change()
_FROM_ZERO = frozenset({"silu", "gelu", "relu", "relu2", "tanh", "xielu"})
"""Functions that are zero at zero; what a name that is not known stands for may be anything."""

SMALLEST = 0.1
LARGEST = 1e4
"""Outside of these a factor is not simply said to cancel in a normaliser. Epsilon's share grows with the inverse square
of the factor: at 0.1 the logits of small models still keep to 1e-3, at 0.01 they are off by up to a tenth. Above, the
activations of half precision overflow."""


def transfer(place: int, inputs: Sequence[Value], facts: Facts) -> Value:
    """What is known of the output of the node at `place`."""
    node = facts.graph.nodes[place]
    return _RULES[type(node)](place, node, inputs, facts)


def _lookup(_place: int, node: Lookup, _inputs: Sequence[Value], facts: Facts) -> Value:
    change = facts.change(node.table)
    if change is None:
        return SAME
    rows = uniform(change.rows)
    if not isinstance(rows, float):
        return ANYTHING
    factor = times(rows, change.columns)
    if change.added == "nothing":
        return Value(factor)
    if change.added == "same_rows":
        return Value(factor, offset=True)
    return Value(factor, shift="token" if change.added == "same_columns" else "steady")


def _linear(place: int, node: Linear, inputs: Sequence[Value], facts: Facts) -> Value:
    x, change = inputs[0], facts.change(node.weight) or _UNCHANGED
    if facts.is_zero(node.weight):
        if not x.same:
            facts.tell(place, "blocked")
        return _biased(place, SAME, node, facts)
    seen = uniform(times(change.columns, x.factor))
    if not isinstance(seen, float):
        if not is_unknown(seen):
            facts.tell(place, "mixed")
        seen = UNKNOWN
    if x.shift == "token":
        seen = UNKNOWN  # what one number on all inputs gives is another vector than what the inputs give
    offset: Mask = False
    if x.shift == "steady" or np.any(x.offset):
        offset = change.rows != 0
    factor = uniform(times(change.rows, seen))
    if isinstance(factor, float) and known_equal(factor, 1.0) and not np.all(known_equal(x.factor, 1.0)):
        facts.tell(place, "compensated", uniform(x.factor))
    result = Value(factor, offset)
    return _biased(place, _with_added(place, node, result, x, change.added, facts), node, facts)


def _with_added(place: int, node: Linear, result: Value, x: Value, added: Added, facts: Facts) -> Value:
    """The output of a linear map whose matrix has had something added."""
    if added == "nothing" or (x.pure and np.all(np.asarray(x.factor) == 0)):
        return result  # of inputs that are all zero, any matrix makes zeros
    if added != "same_rows" and x.pure and _centred(facts.graph.nodes[node.x]):
        facts.tell(place, "centred")  # every output is moved by a multiple of the sum of the inputs, which is zero
        return result
    if added == "same_columns":
        if any(_by_head(reader, facts) for reader in _readers(place, facts)):
            facts.doubt(place, "level")
            return result if facts.hopeful else replace(result, factor=UNKNOWN)
        return replace(result, factor=UNKNOWN)
    return replace(result, shift="token")


def _biased(place: int, result: Value, node: Linear | Normalize, facts: Facts) -> Value:
    """The value of `result` + bias, where `result` is known without."""
    bias = node.bias
    if bias is None:
        return result
    change = facts.change(bias)
    if facts.is_zero(bias):
        return result
    along: Factors = 1.0
    shift = result.shift
    if change is not None and change.added == "constant" and not change.arbitrary:
        along = replace(change, added="nothing").along(node.width)
        shift = "token" if shift == "token" else "steady"
    elif change is not None:
        along = change.along(node.width)
    if bias.tensor in facts.zero:
        differs = np.isnan(along)  # a multiple of nothing is nothing
    else:
        differs = ~np.asarray(known_equal(along, result.factor))
        if change is None and differs.any() and not is_unknown(result.factor):
            facts.tell(place, "bias", uniform(result.factor))
    offset = differs | np.asarray(result.offset)
    return replace(result, offset=offset if np.ndim(offset) else bool(offset), shift=shift)


def _readers(place: int, facts: Facts) -> Iterator[Node]:
    """The nodes that read a node's channels, or some of them."""
    for consumer in facts.graph.consumers[place]:
        node = facts.graph.nodes[consumer]
        yield from _readers(consumer, facts) if isinstance(node, Channels) else (node,)


def _by_head(node: Node, facts: Facts) -> bool:
    """Whether a mean is taken out of each head by itself: only the values tell if what is added is level within it."""
    if not (isinstance(node, Normalize) and node.kind == "layer"):
        return False
    return node.group < node.width or isinstance(facts.graph.nodes[node.x], Channels)


def _centred(node: Node) -> bool:
    """Whether the channels of a node's output sum to zero, whatever goes in."""
    return isinstance(node, Normalize) and node.kind == "layer" and node.weight is None and node.group == node.width


def _normalize(place: int, node: Normalize, inputs: Sequence[Value], facts: Facts) -> Value:
    x = inputs[0]
    change = None if node.weight is None else facts.change(node.weight)
    if node.weight is not None and not node.one_plus and facts.is_zero(node.weight):
        if not x.same:
            facts.tell(place, "blocked")
        return _biased(place, SAME, node, facts)
    result = SAME if x.same else Value(_direction(place, node, x, facts))
    if change is not None:
        along = change.along(node.width)
        if node.one_plus and not np.all(known_equal(along, 1.0)):
            along = UNKNOWN  # 1 + s·w is no multiple of 1 + w
        result = replace(result, factor=uniform(times(result.factor, along)))
    return _biased(place, result, node, facts)


def _direction(place: int, node: Normalize, x: Value, facts: Facts) -> Factors:
    """The factor of each channel after it is brought to unit scale: the sign, if that of its group is known."""
    single = isinstance(x.factor, float) and isinstance(x.offset, bool)
    shape = (1, 1) if single else (node.width // node.group, node.group)
    factor = np.broadcast_to(np.asarray(x.factor), (shape[0] * shape[1],)).reshape(shape)
    offset = np.broadcast_to(np.asarray(x.offset), (shape[0] * shape[1],)).reshape(shape)
    sizes = np.abs(factor)
    # The mean that is taken out first is that of factors and signs alike.
    compared = factor if node.kind == "layer" else sizes
    alike = np.isclose(compared, compared[:, :1], rtol=TOLERANCE, atol=0).all(axis=1)
    level = alike & offset.all(axis=1) & _by_head(node, facts)
    if level.any():  # what is added may be one number for all of a head
        facts.doubt(place, "level")
    alike &= ~offset.any(axis=1) | (level & facts.hopeful)
    if x.shift != "none" and node.kind != "layer":
        alike &= False
    size = sizes[:, 0]
    cancels = alike & (size != 0) & ~np.asarray(known_equal(size, 1.0))
    small = size < SMALLEST * (1 - TOLERANCE)
    doubtful = cancels & (small | (size > LARGEST) | facts.measured)
    met = uniform(factor[cancels].reshape(-1)) if cancels.any() else None
    if doubtful.any():
        kind = "measured" if facts.measured else "small" if small[doubtful].any() else "large"
        facts.doubt(place, kind, met)
        if not facts.hopeful:
            alike &= ~doubtful
    elif cancels.any():
        facts.tell(place, "cancelled", met)
    if x.shift != "none" and alike.any():
        facts.tell(place, "centred")
    return uniform(np.where(alike[:, None], np.sign(factor), UNKNOWN).reshape(-1))


def _activate(place: int, node: Activate, inputs: Sequence[Value], facts: Facts) -> Value:
    x = inputs[0]
    factor = np.asarray(x.factor)
    out = np.where(known_equal(factor, 1.0), 1.0, UNKNOWN)
    if node.function in _FROM_ZERO:
        out = np.where(factor == 0, 0.0, out)
    with np.errstate(invalid="ignore", over="ignore"):
        if node.function == "relu":
            out = np.where(factor >= 0, factor, out)
        elif node.function == "relu2":
            out = np.where(factor >= 0, factor**2, out)
        elif node.function == "tanh":
            out = np.where(factor == -1, -1.0, out)
    return Value(_unless_touched(place, x, out, "curve", facts))


def _unless_touched(place: int, x: Value, out: NDArray[np.float64], kind: str, facts: Facts) -> Factors:
    """`out`, unknown where something is added to `x`; what is lost is told as an event of that kind."""
    out = np.where(np.asarray(x.offset) | (x.shift != "none"), UNKNOWN, out)
    result = uniform(out) if out.ndim else float(out)
    if is_unknown(result) and not is_unknown(x.factor):
        facts.tell(place, kind, uniform(x.factor) if x.pure else None)
    return result


def _clip(place: int, _node: Clip, inputs: Sequence[Value], facts: Facts) -> Value:
    x = inputs[0]
    factor = np.asarray(x.factor)
    passes = np.isclose(np.abs(factor), 1.0, rtol=TOLERANCE, atol=0) | (factor == 0)
    return Value(_unless_touched(place, x, np.where(passes, factor, UNKNOWN), "clipped", facts))


def _softcap(_place: int, _node: Softcap, inputs: Sequence[Value], _facts: Facts) -> Value:
    return inputs[0]  # the verdict knows that it is there: order is kept, proportions are not


def _product(place: int, _node: Product, inputs: Sequence[Value], facts: Facts) -> Value:
    x, y = inputs
    factor = uniform(times(x.factor, y.factor))
    for one, other in ((x, y), (y, x)):
        if not one.pure and not (other.pure and np.all(np.asarray(other.factor) == 0)):
            factor = UNKNOWN
    if np.all(known_equal(factor, 1.0)) and not np.all(known_equal(x.factor, 1.0)):
        facts.tell(place, "compensated", uniform(x.factor))
    return Value(factor)


def _sum(place: int, _node: Sum, inputs: Sequence[Value], facts: Facts) -> Value:
    factor, offset = inputs[0].factor, np.asarray(inputs[0].offset)
    for term in inputs[1:]:
        factor, offset = _agreed(factor, term.factor), offset | np.asarray(term.offset)
    if is_unknown(factor) and not any(term.unknown for term in inputs):
        odd = [term for term in inputs if not np.all(known_equal(term.factor, 1.0))]
        kind = "stream" if odd == [inputs[0]] else "branch"
        facts.tell(place, kind, uniform(odd[0].factor) if len(odd) == 1 else None)
    shifts = [term.shift for term in inputs]
    shift: Shift = "token" if "token" in shifts else "steady" if "steady" in shifts else "none"
    return Value(factor, offset if offset.ndim else bool(offset), shift)


def _agreed(a: Factors, b: Factors) -> Factors:
    """The factor that two terms of a sum share; unknown where they do not."""
    if isinstance(a, float) and isinstance(b, float):
        return a if known_equal(a, b) else UNKNOWN
    return uniform(np.where(known_equal(a, b), a, UNKNOWN))


def _channels(_place: int, node: Channels, inputs: Sequence[Value], _facts: Facts) -> Value:
    return at(inputs[0], node.indices)


def _join(_place: int, node: Join, inputs: Sequence[Value], facts: Facts) -> Value:
    if all(value.same for value in inputs):
        return SAME
    widths = [facts.graph.nodes[part].width for part in node.parts]
    # A number added to all channels of one part is not the number added to another.
    factors = [
        np.broadcast_to(np.asarray(UNKNOWN if value.shift != "none" else value.factor), (width,))
        for value, width in zip(inputs, widths, strict=True)
    ]
    offsets = [np.broadcast_to(np.asarray(value.offset), (width,)) for value, width in zip(inputs, widths, strict=True)]
    offset = np.concatenate(offsets)
    return Value(uniform(np.concatenate(factors)), offset if offset.any() else False)


def _attend(place: int, node: Attend, inputs: Sequence[Value], facts: Facts) -> Value:
    value, told = attended(node, *inputs, width=facts.graph.nodes[node.query].width)
    for kind, factor in told:
        facts.tell(place, kind, factor)
    return value


def _route(place: int, node: Route, inputs: Sequence[Value], facts: Facts) -> Value:
    x = inputs[0]
    if node.correction is not None and facts.change(node.correction) is not None:
        facts.doubt(place, "choice")
        if x.same or not facts.hopeful:
            return SAME if facts.hopeful else ANYTHING
    factor = uniform(x.factor)
    # The softmax does not see what is added to all logits; the sigmoid does.
    plain = isinstance(factor, float) and not np.any(x.offset) and (x.shift == "none" or node.scoring == "softmax")
    if plain and known_equal(factor, 1.0):
        if x.shift != "none":
            facts.tell(place, "softmax")
        return SAME
    if node.top == 1 and node.renormalized:
        # The weight of the one expert is one; a positive factor keeps the largest logit the largest.
        if plain and isinstance(factor, float) and factor > 0 and node.correction is None:
            facts.tell(place, "chosen", factor)
            return SAME
        facts.doubt(place, "choice")
        return SAME if facts.hopeful else ANYTHING
    facts.tell(place, "curve", factor)
    return ANYTHING


def _mix(place: int, _node: Mix, inputs: Sequence[Value], facts: Facts) -> Value:
    route, experts = inputs[0], inputs[1:]
    # Most of hundreds of experts share one factor: each is compared once.
    several = {v.factor if isinstance(v.factor, float) else id(v.factor): v.factor for v in experts}
    factor, *others = several.values()
    for other in others:
        factor = _agreed(factor, other)
    shifted = any(expert.shift != "none" for expert in experts)
    offset = any(np.any(expert.offset) for expert in experts)
    if is_unknown(factor) and not any(expert.unknown for expert in experts):
        facts.tell(place, "branch")
    if not route.same:
        # Weights that may be anything: what they multiply is zero still where it was.
        factor, shifted, offset = (
            (UNKNOWN, False, False) if shifted or offset else (times(factor, UNKNOWN), False, False)
        )
    if offset:
        factor = UNKNOWN  # something else for each expert, in proportions that depend on the token
    return Value(factor, shift="token" if shifted else "none")


_RULES: dict[type[Node], Callable[..., Value]] = {
    Lookup: _lookup,
    Linear: _linear,
    Normalize: _normalize,
    Activate: _activate,
    Clip: _clip,
    Softcap: _softcap,
    Product: _product,
    Sum: _sum,
    Channels: _channels,
    Join: _join,
    Attend: _attend,
    Route: _route,
    Mix: _mix,
}
