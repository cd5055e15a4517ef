"""The arrays of an evidence file: for each loss and each group of documents, its derivative by every scale and shift.

Keeping them group by group, and not only their mean, is what gives a standard error to any combination of steps, and
what makes curvature cheap: the Fisher information over all steps is the second moment of these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from planner.evidence.layout import Layout

__all__ = ["SETS", "Direction", "Floats", "Grouping", "Measured", "Scores", "SetName"]

Floats = NDArray[np.float64]
SetName = Literal["raw", "calibrated", "fisher_raw", "fisher", "fisher_drift"]
"""raw, calibrated: derivatives of the loss with the real labels. The others: scores, with labels drawn from the model;
raw at temperature one, the others but drift at the calibrated one. fisher_drift is of the drift text."""
SETS: tuple[SetName, ...] = get_args(SetName)


@dataclass(frozen=True, eq=False)
class Grouping:
    """The groups of documents of one objective."""

    weights: Floats
    """[groups]: what the loss is a mean over, tokens or questions."""
    side: NDArray[np.int64]
    """[groups]: 1 for groups of the text against, whose loss counts negatively."""
    merged: NDArray[np.int64]
    """[groups]: which row of the arrays over units each is part of; those are kept for fewer, larger groups."""

    @cached_property
    def signs(self) -> Floats:
        """[groups]: 1, or -1 for the text against."""
        return np.where(self.side == 1, -1.0, 1.0)

    @cached_property
    def totals(self) -> Floats:
        """[groups]: the weight of all groups of the same side."""
        sums: Floats = np.bincount(self.side, weights=self.weights, minlength=2).astype(np.float64)
        return sums[self.side]

    @cached_property
    def coarse(self) -> Grouping:
        """The merged groups."""
        count = int(self.merged.max()) + 1
        side = np.zeros(count, np.int64)
        side[self.merged] = self.side
        weights = np.bincount(self.merged, weights=self.weights, minlength=count).astype(np.float64)
        return Grouping(weights, side, np.arange(count))

    @cached_property
    def halves(self) -> NDArray[np.int64]:
        """[groups]: 0 or 1, every other group of each side."""
        half = np.zeros(len(self.side), np.int64)
        for side in (0, 1):
            members = np.flatnonzero(self.side == side)
            half[members] = np.arange(len(members)) % 2
        return half

    def merge(self, rows: Floats) -> Floats:
        """[groups, n] summed to [merged groups, n]."""
        summed = np.zeros((int(self.merged.max()) + 1, rows.shape[1]))
        np.add.at(summed, self.merged, rows)
        return summed

    def mean(self, rows: Floats, half: int | None = None) -> Floats:
        """The derivative of the loss, [n], from [groups, n] sums: by all groups, or by one half of them."""
        chosen = slice(None) if half is None else self.halves == half
        sums = np.bincount(self.side[chosen], weights=self.weights[chosen], minlength=2)
        factors = self.signs[chosen] / sums[self.side[chosen]]
        mean: Floats = factors @ rows[chosen]
        return mean

    def standard_error(self, rows: Floats) -> Floats | None:
        """[n]: of `mean`, for a ratio of sums over groups (Cochran 1977, 6.3); None where a side has one group."""
        variance = np.zeros(rows.shape[1])
        for side in np.unique(self.side):
            members = self.side == side
            count = int(members.sum())
            if count < 2:
                return None
            share = self.weights[members] / self.weights[members].sum()
            total = rows[members].sum(axis=0)
            residuals = (rows[members] - share[:, None] * total) / self.weights[members].sum()
            variance += (residuals**2).sum(axis=0) * count / (count - 1)
        return np.sqrt(variance)


@dataclass(frozen=True, eq=False)
class Scores:
    """One set of derivatives, summed over the documents of each group."""

    tensors: Floats
    """[groups, 2 · tensors + 1]: by log scale of each tensor, by shift of each, by log inverse temperature."""
    units: NDArray[np.float32]
    """[merged groups, units]: by log factor of each row and column."""


@dataclass(frozen=True, eq=False)
class Direction:
    """The leading directions of a matrix's calibrated gradient."""

    left: Floats
    """[rows, rank]."""
    strengths: Floats
    """[rank]."""
    right: Floats
    """[rank, columns]."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that lies beside the JSON."""

    layout: Layout
    goal: Grouping
    drift: Grouping
    sets: Mapping[SetName, Scores]
    directions: Mapping[str, Direction] = field(default_factory=dict)

    def grouping(self, name: SetName) -> Grouping:
        """The groups of one set."""
        return self.drift if name == "fisher_drift" else self.goal
