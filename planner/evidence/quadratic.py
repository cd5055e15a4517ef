"""The second-order model of the loss and of the drift around the weights as they are.

    loss(s)  ≈ loss + g·s + ½ sᵀ F s        drift(s) = KL(as it is ‖ changed) ≈ ½ sᵀ F_drift s

g is the mean derivative over documents, F the Fisher information from labels drawn from the model (on a model that
predicts well it is the Hessian; Martens 2020). At the calibrated temperature b, the log of b is one more step that may
be taken at will, so it is projected out: F̃ = F - F_sb F_bs / F_bb, the Schur complement, and g̃ = g - F_sb g_b / F_bb.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from planner.evidence.measured import Floats, Grouping, Measured, SetName

__all__ = ["Level", "Quadratic", "crossed_gain", "natural_step", "predicted_gain"]

Level = Literal["tensors", "units"]


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The model over n steps: the scales of all tensors, of all units, or any combinations of these."""

    goal: Grouping
    drift_groups: Grouping
    raw: Floats
    """[groups, n]: derivatives of the loss, summed over each group."""
    calibrated: Floats
    """[groups, n]: at the calibrated temperature, which is projected out."""
    fisher_raw: Floats
    """[groups, n]: scores, such that the Fisher information is their signed second moment."""
    fisher: Floats
    """[groups, n]: at the calibrated temperature, which is projected out."""
    fisher_drift: Floats
    """[drift groups, n]."""

    @classmethod
    def of(cls, measured: Measured, level: Level) -> Quadratic:
        """Over the scales of all tensors or the log factors of all units."""

        def rows(name: SetName) -> Floats:
            scores = measured.sets[name]
            if level == "units":
                return np.asarray(scores.units, dtype=np.float64)
            return np.asarray(scores.tensors[:, : measured.layout.tensors])

        def temperature(name: SetName) -> Floats:
            column = measured.sets[name].tensors[:, -1:]
            return (measured.grouping(name).merge(column) if level == "units" else column)[:, 0]

        coarse = level == "units"
        goal = measured.goal.coarse if coarse else measured.goal
        drift = measured.drift.coarse if coarse else measured.drift
        return cls._made(goal, drift, rows, temperature)

    @classmethod
    def along(cls, measured: Measured, steps: Floats, *, shifts: Floats, units: Floats | None) -> Quadratic:
        """Over m combinations: `steps` [tensors, m] log scales, `shifts` [tensors, m], `units` [units, m] log factors.

        With `units` the merged groups are used.
        """

        def rows(name: SetName) -> Floats:
            scores, grouping = measured.sets[name], measured.grouping(name)
            whole = scores.tensors[:, :-1] @ np.concatenate([steps, shifts])
            if units is None:
                return np.asarray(whole)
            return np.asarray(grouping.merge(whole) + scores.units.astype(np.float64) @ units)

        def temperature(name: SetName) -> Floats:
            column = measured.sets[name].tensors[:, -1:]
            return (column if units is None else measured.grouping(name).merge(column))[:, 0]

        fine = units is None
        goal = measured.goal if fine else measured.goal.coarse
        drift = measured.drift if fine else measured.drift.coarse
        return cls._made(goal, drift, rows, temperature)

    @classmethod
    def _made(cls, goal: Grouping, drift: Grouping, rows: object, temperature: object) -> Quadratic:
        assert callable(rows)
        assert callable(temperature)
        scale = np.sqrt(goal.totals)[:, None]
        fisher, level = rows("fisher") / scale, temperature("fisher") / scale[:, 0]
        along = level @ fisher / max(float(level @ level), np.finfo(float).tiny)
        return cls(
            goal=goal,
            drift_groups=drift,
            raw=rows("raw"),
            calibrated=rows("calibrated") - np.outer(temperature("calibrated"), along),
            fisher_raw=rows("fisher_raw") / scale,
            fisher=fisher - np.outer(level, along),
            fisher_drift=rows("fisher_drift") / np.sqrt(drift.totals)[:, None],
        )

    @cached_property
    def gradient(self) -> Floats:
        """[n]: of the calibrated loss."""
        return self.goal.mean(self.calibrated)

    @cached_property
    def gradient_se(self) -> Floats | None:
        """[n]: its standard error over groups."""
        return self.goal.standard_error(self.calibrated)

    def half(self, number: int) -> tuple[Floats, Floats]:
        """The gradient [n] and the scores [groups of this half, n] from one half of the documents alone."""
        chosen = self.goal.halves == number
        share = self.goal.weights[chosen].sum() / self.goal.weights.sum()
        return self.goal.mean(self.calibrated, number), self.fisher[chosen] / np.sqrt(share)

    def curvature(self) -> Floats:
        """[n]: the diagonal of the calibrated Fisher information."""
        return np.asarray((self.fisher**2).sum(axis=0))

    def drift_curvature(self) -> Floats:
        """[n]: the diagonal of the Fisher information on the drift text."""
        return np.asarray((self.fisher_drift**2).sum(axis=0))


def natural_step(gradient: Floats, scores: Floats, damping: float) -> Floats:
    """[n]: -(F + damping · (diag F + mean diag F))⁻¹ g with F = Zᵀ Z, through the small matrix Z D⁻¹ Zᵀ (Woodbury).

    The mean is there for steps of which the documents show no curvature, such as the rows of tokens that never occur.
    """
    if not len(gradient):
        return gradient
    diagonal = np.einsum("gi,gi->i", scores, scores)
    level = damping * (diagonal + max(float(diagonal.mean()), np.finfo(float).tiny))
    scaled = scores / level
    inner = scaled @ scores.T + np.eye(len(scores))
    step: Floats = -(gradient / level - scaled.T @ np.linalg.solve(inner, scaled @ gradient))
    return step


def predicted_gain(gradient: Floats, scores: Floats, step: Floats) -> float:
    """What the quadratic takes off the loss."""
    along = scores @ step
    return float(-(gradient @ step) - 0.5 * (along @ along))


def crossed_gain(quadratic: Quadratic, damping: float) -> tuple[float, float, Floats]:
    """What a step of this damping brings on documents that did not choose it; what on those that did; that step, [n].

    Each half of the documents chooses a direction and a length, and the other half judges both; the mean of the two.
    """
    gains = []
    for number in (0, 1):
        step = natural_step(*quadratic.half(number), damping)
        gains.append(predicted_gain(*quadratic.half(1 - number), step))
    whole = natural_step(quadratic.gradient, quadratic.fisher, damping)
    return float(np.mean(gains)), predicted_gain(quadratic.gradient, quadratic.fisher, whole), whole
