"""What attention does with changed queries, keys and values.

The softmax sees only products of a query with keys: a factor on queries is undone by its inverse on keys, plane by
plane of rotation; what is added alike to every key (a key bias) adds the same number to every score of a query, which
the softmax does not see, unless a rotation makes it depend on the position or a sink takes part.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.architecture.graph import Attend
from planner.effects.factors import TOLERANCE, UNKNOWN, Factors, known_equal, times, uniform
from planner.effects.values import SAME, Mask, Value

__all__ = ["attended"]

Told = list[tuple[str, Factors | None]]


def attended(node: Attend, query: Value, key: Value, value: Value, *, width: int) -> tuple[Value, Told]:
    """What is known of the heads' mixtures, and what is to be told of it. `width` is that of all queries together."""
    told: Told = []
    kept = _scores_kept(node, query, key, width // node.heads, told)
    if kept is True and value.same:
        return SAME, told
    size = node.width // node.heads
    factor = _spread(value.factor, node, size)
    offset = _spread_mask(value.offset, node, size)
    shift = value.shift
    if node.sinks and (shift != "none" or np.any(offset)):
        # Weights sum to less than one, and to what depends on the token: what is added passes in part.
        factor = uniform(np.where(np.asarray(offset) | (shift != "none"), UNKNOWN, factor))
        offset, shift = False, "none"
    elif shift == "token":
        # A sum of numbers weighted head by head is not the same number for all heads.
        factor, offset, shift = UNKNOWN, False, "none"
    if kept is not True:
        # What is added alike to every value passes whatever the weights are, and so does a zero.
        factor = uniform(np.where(np.repeat(kept, size), factor, times(factor, UNKNOWN)))
    return Value(factor, offset, shift), told


def _scores_kept(node: Attend, query: Value, key: Value, size: int, told: Told) -> NDArray[np.bool_] | Literal[True]:
    """For each query head whether its attention weights stay as they were; True where all do."""
    if query.same and key.same:
        return True
    heads = node.heads
    fq = _by_head(np.asarray(query.factor, dtype=np.float64), heads, size)
    fk = _by_head(np.asarray(_spread(key.factor, node, size), dtype=np.float64), heads, size)
    with np.errstate(invalid="ignore", over="ignore"):
        products = fq * fk
        turned_alike = np.ones(heads, dtype=bool)
        if node.planes.size:
            left, right = node.planes[:, 0], node.planes[:, 1]
            for factors in (fq, fk):
                turned_alike &= np.isclose(factors[:, left], factors[:, right], rtol=TOLERANCE, atol=0).all(axis=1)
        cancel = np.isclose(products, 1.0, rtol=TOLERANCE, atol=0).all(axis=1) & turned_alike
    kept: NDArray[np.bool_] = cancel & ~_moved(query, heads, size) & _key_offset_unseen(node, key, size)
    if kept.all():
        if not np.all(known_equal(query.factor, 1.0)):
            told.append(("compensated", uniform(query.factor)))
        if not key.pure:
            told.append(("softmax", None))
        return True
    product = uniform(products.reshape(-1))
    if isinstance(product, float) and turned_alike.all() and query.pure and key.pure:
        if product == 0:
            told.append(("level", None))
        elif not known_equal(product, 1.0) and product == product:
            told.append(("temperature", product))
    return kept


def _by_head(factors: NDArray[np.float64], heads: int, size: int) -> NDArray[np.float64]:
    return np.broadcast_to(factors, (heads * size,)).reshape(heads, size)


def _moved(query: Value, heads: int, size: int) -> NDArray[np.bool_]:
    """For each query head whether something is added to its queries."""
    if query.shift != "none":
        return np.ones(heads, dtype=bool)
    moved: NDArray[np.bool_] = np.broadcast_to(np.asarray(query.offset), (heads * size,)).reshape(heads, size)
    return np.asarray(moved.any(axis=1))


def _key_offset_unseen(node: Attend, key: Value, size: int) -> NDArray[np.bool_]:
    """For each query head whether the softmax cannot see what was added to its keys."""
    if key.pure:
        return np.ones(node.heads, dtype=bool)
    if key.shift == "token" or (key.shift == "steady" and (node.sinks or node.planes.size > 0)):
        return np.zeros(node.heads, dtype=bool)
    moved = np.broadcast_to(np.asarray(_spread_mask(key.offset, node, size)), (node.heads * size,))
    moved = moved.reshape(node.heads, size)
    seen = moved if node.sinks else moved[:, node.planes.reshape(-1)]
    return ~np.asarray(seen.any(axis=1))


def _spread(factor: Factors, node: Attend, size: int) -> Factors:
    """The factors of key/value heads, for each of the query heads that share them."""
    if isinstance(factor, float):
        return factor
    shared = node.heads // node.key_value_heads
    return np.repeat(factor.reshape(node.key_value_heads, size), shared, axis=0).reshape(-1)


def _spread_mask(mask: Mask, node: Attend, size: int) -> Mask:
    if isinstance(mask, bool):
        return mask
    shared = node.heads // node.key_value_heads
    return np.repeat(mask.reshape(node.key_value_heads, size), shared, axis=0).reshape(-1)
