"""Measured arrays made by hand, small enough to compute everything again another way."""

from __future__ import annotations

import numpy as np

from planner.evidence import Grouping, Layout, Measured, Scores

SETS = ("raw", "calibrated", "fisher", "fisher_raw", "fisher_drift")
SHAPES = {"a.weight": (3, 4), "b.weight": (2, 2), "c.weight": (1, 5)}


def grouping(weights: object, side: object = None, merged: object = None) -> Grouping:
    weights = np.asarray(weights, dtype=float)
    count = len(weights)
    return Grouping(
        weights,
        np.zeros(count, np.int64) if side is None else np.asarray(side),
        np.arange(count) if merged is None else np.asarray(merged),
    )


def made(groups: Grouping, *, seed: int = 0, noise: float = 1.0, mean: float = 0.3) -> Measured:
    """Random rows: normal numbers around a mean for each column, times the weight of the group."""
    random, layout = np.random.default_rng(seed), Layout(SHAPES)
    columns, coarse = 2 * layout.tensors + 1, groups.coarse
    sets = {}
    for name in SETS:
        centre = mean * random.normal(size=columns) if name in ("raw", "calibrated") else np.zeros(columns)
        fine = groups.weights[:, None] * (
            centre + noise * random.normal(size=(len(groups.weights), columns)) / np.sqrt(groups.weights)[:, None]
        )
        units = np.sqrt(coarse.weights)[:, None] * random.normal(size=(len(coarse.weights), layout.units))
        sets[name] = Scores(fine, units.astype(np.float32))
    return Measured(layout, groups, groups, sets)
