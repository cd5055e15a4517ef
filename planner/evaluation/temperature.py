"""Calibrated loss: each side at its own best logit temperature, fitted on other documents.

Dividing all logits by one number T changes a model's loss and no ranking of its predictions; an edit that only does
that has taught the model nothing. Refitting T on both sides takes this gain away from both (temperature scaling: Guo et
al. 2017), and fitting on other documents than those it is applied to keeps the fit from flattering itself.

Losses are kept as curves: per document, the summed negative log-likelihood in nats at a few inverse temperatures
b = 1/T. As a function of b the curve is a log-partition function minus a linear term: smooth and convex, so it has one
minimum, and a polynomial through neighbouring nodes is close. The nodes are equally spaced around a centre, which is
chosen for each side near its minimum, so that a minimum far from 1 is found as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

__all__ = [
    "CENTRES",
    "FIRST_NODE",
    "NODES",
    "NODE_STEP",
    "Curves",
    "assign_folds",
    "best_inverse_temperature",
    "cross_fit",
]

Floats = NDArray[np.float64]
NODES, FIRST_NODE, NODE_STEP = 16, 0.5, 0.1
"""A side's curves are known at centre * (FIRST_NODE + NODE_STEP * k) for k < NODES: from half to twice the centre."""
CENTRES: tuple[float, ...] = tuple(2.0**power for power in range(-6, 7))
"""The centres to choose from. Powers of two, so that two sides that differ little have the same nodes."""
_FOLDS = 5
_POINTS = 6
_FINE = 20


@dataclass(frozen=True, eq=False)
class Curves:
    """The loss of n documents as a function of the inverse temperature."""

    centre: float
    """One of `CENTRES`."""
    values: Floats
    """Shape [n, NODES]: nats, summed over the tokens of the document."""

    def at(self, inverse_temperature: float, rows: NDArray[np.bool_] | None = None) -> Floats:
        """Interpolated losses of the documents (of `rows`) at one inverse temperature between the outer nodes, nats."""
        values = self.values if rows is None else self.values[rows]
        losses: Floats = values @ _weights(np.array([inverse_temperature / self.centre]))[0]
        return losses


def best_inverse_temperature(curves: Curves, rows: NDArray[np.bool_] | None = None) -> tuple[float, bool]:
    """The inverse temperature that minimises the summed loss of the documents (of `rows`), and whether it is a limit.

    The limits are half and twice the centre; a better value may lie beyond.
    """
    total = (curves.values if rows is None else curves.values[rows]).sum(axis=0)
    fine = np.linspace(FIRST_NODE, FIRST_NODE + (NODES - 1) * NODE_STEP, (NODES - 1) * _FINE + 1, dtype=np.float64)
    losses = _weights(fine) @ total
    place = int(np.argmin(losses))
    if place in (0, len(fine) - 1):
        return float(fine[place]) * curves.centre, True
    # The vertex of the parabola through the lowest point and its neighbours.
    left, middle, right = losses[place - 1 : place + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return float(fine[place] + shift * NODE_STEP / _FINE) * curves.centre, False


def assign_folds(documents: Sequence[str]) -> NDArray[np.int64]:
    """A fold number below 5 for each document: documents ordered by their digest and dealt out in turn.

    It depends on the set of documents, not on their order or a seed; equal documents share a fold, so that none is
    calibrated on a copy of itself. With fewer than 5 different documents there are as many folds as documents.
    """
    digests = [blake3(document.encode("utf-8", "surrogatepass")).digest() for document in documents]
    dealt = {digest: rank % _FOLDS for rank, digest in enumerate(sorted(set(digests)))}
    return np.array([dealt[digest] for digest in digests], dtype=np.int64)


def cross_fit(curves: Curves, folds: NDArray[np.int64]) -> Floats:
    """Shape [n]: every document's loss in nats at the temperature that is best for the documents of the other folds.

    There must be at least two folds.
    """
    calibrated = np.empty(len(folds))
    for fold in np.unique(folds):
        held_out = folds == fold
        inverse_temperature, _ = best_inverse_temperature(curves, ~held_out)
        calibrated[held_out] = curves.at(inverse_temperature, held_out)
    return calibrated


def _weights(points: Floats) -> Floats:
    """Shape [m, NODES]: row i interpolates at centre * points[i], by Lagrange's quintic through 6 nodes."""
    position = (points - FIRST_NODE) / NODE_STEP
    first = np.clip(np.floor(position).astype(np.int64) - (_POINTS // 2 - 1), 0, NODES - _POINTS)
    weights = np.zeros((len(points), NODES))
    local = position - first
    rows = np.arange(len(points))
    for node in range(_POINTS):
        factor = np.ones(len(points))
        for other in range(_POINTS):
            if other != node:
                factor *= (local - other) / (node - other)
        weights[rows, first + node] = factor
    return weights
