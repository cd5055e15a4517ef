"""The second-order model of the loss and of the drift around the weights as they are.

    loss(s)  ≈ loss + g·s + ½ sᵀ F s        drift(s) = KL(as it is ‖ changed) ≈ ½ sᵀ F_drift s

g is the mean derivative over documents, F the Fisher information from labels drawn from the model (on a model that
predicts well it is the Hessian; Martens 2020). At the calibrated temperature b, the log of b is one more step that may
be taken at will, so it is projected out: F̃ = F - F_sb F_bs / F_bb, the Schur complement, and g̃ = g - F_sb g_b / F_bb.

In a contrast the temperature is that of the goal text, so its Fisher information alone says how b answers to a step.
The curvature of a contrast is that of the goal text minus that of the text against, and may be negative. Steps are
chosen, and gains predicted, with the sum of the two, which is never less: then a step is too short and never wild.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from planner.evidence.measured import Floats, Grouping, Measured, SetName

__all__ = ["Crossed", "Level", "Quadratic", "crossed", "natural_step", "predicted_gain"]

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
    """[groups, n]: scores, such that the Fisher information is their second moment, Σ z zᵀ (in a contrast that of both
    texts; with the signs of the groups it is the curvature of the loss)."""
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
    def _made(
        cls,
        goal: Grouping,
        drift: Grouping,
        rows: Callable[[SetName], Floats],
        temperature: Callable[[SetName], Floats],
    ) -> Quadratic:
        scale = np.sqrt(goal.totals)[:, None]
        fisher, level = rows("fisher") / scale, temperature("fisher") / scale[:, 0]
        main = goal.side == 0
        along = level[main] @ fisher[main] / max(float(level[main] @ level[main]), np.finfo(float).tiny)
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
        side = self.goal.side
        sums = np.bincount(side[chosen], weights=self.goal.weights[chosen], minlength=2)
        share = sums[side[chosen]] / self.goal.totals[chosen]
        return self.goal.mean(self.calibrated, number), self.fisher[chosen] / np.sqrt(share)[:, None]

    def judged(self, number: int, step: Floats) -> float | None:
        """Standard error over one half of the documents of the first-order change along a step."""
        chosen = self.goal.halves == number
        part = Grouping(self.goal.weights[chosen], self.goal.side[chosen], np.arange(int(chosen.sum())))
        error = part.standard_error((self.calibrated[chosen] @ step)[:, None])
        return None if error is None else float(error[0])

    def curvature(self) -> Floats:
        """[n]: the diagonal of the calibrated Fisher information."""
        return np.asarray((self.fisher**2).sum(axis=0))

    def curvature_with_temperature(self) -> Floats:
        """[n]: the diagonal of the Fisher information at temperature one, nothing projected out."""
        return np.asarray((self.fisher_raw**2).sum(axis=0))

    def drift_curvature(self) -> Floats:
        """[n]: the diagonal of the Fisher information on the drift text."""
        return np.asarray((self.fisher_drift**2).sum(axis=0))


def natural_step(gradient: Floats, scores: Floats, damping: float) -> Floats:
    """[n]: -(F + damping · (diag F + mean diag F))⁻¹ g with F = Zᵀ Z, through the small matrix Z D⁻¹ Zᵀ (Woodbury).

    The mean is there for steps of which the documents show no curvature, such as the rows of tokens that never occur.
    Where nothing shows any, no step is taken.
    """
    diagonal = np.einsum("gi,gi->i", scores, scores)
    if not diagonal.any():
        return np.zeros_like(gradient)
    level = damping * (diagonal + diagonal.mean())
    scaled = scores / level
    inner = scaled @ scores.T + np.eye(len(scores))
    step: Floats = -(gradient / level - scaled.T @ np.linalg.solve(inner, scaled @ gradient))
    return step


def predicted_gain(gradient: Floats, scores: Floats, step: Floats) -> float:
    """What the quadratic takes off the loss."""
    along = scores @ step
    return float(-(gradient @ step) - 0.5 * (along @ along))


@dataclass(frozen=True, eq=False)
class Crossed:
    """A step, and what it brings."""

    step: Floats
    """[n]: of all documents."""
    gain: float
    """On documents that did not choose it."""
    gain_se: float | None
    """Its standard error over documents, that of the first-order part, which varies most."""
    reach: float | None
    """What it may bring at most, with a first-order part two standard errors better; None where there are no errors."""
    in_sample: float
    """On the documents that chose it."""


def crossed(quadratic: Quadratic, damping: float) -> Crossed:
    """A step of this damping: half of the documents chooses a direction, and the other half judges it, both ways.

    The length is one number, the best for both judges together.
    """
    fall = bend = variance = 0.0
    known = True
    for number in (0, 1):
        direction = natural_step(*quadratic.half(number), damping)
        gradient, scores = quadratic.half(1 - number)
        along = scores @ direction
        fall -= float(gradient @ direction) / 2
        bend += float(along @ along) / 2
        error = quadratic.judged(1 - number, direction)
        known = known and error is not None
        variance += (error or 0.0) ** 2
    error_of_fall = float(np.sqrt(variance)) / 2
    length = max(fall, 0.0) / bend if bend > 0 else 0.0
    step = length * natural_step(quadratic.gradient, quadratic.fisher, damping)
    return Crossed(
        step=step,
        gain=length * max(fall, 0.0) - 0.5 * length**2 * bend,
        gain_se=length * error_of_fall if known else None,
        reach=max(fall + 2 * error_of_fall, 0.0) ** 2 / (2 * bend) if known and bend > 0 else None,
        in_sample=predicted_gain(quadratic.gradient, quadratic.fisher, step),
    )
