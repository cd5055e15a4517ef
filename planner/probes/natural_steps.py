"""Natural-gradient steps over the logs of many factors, each as long as other documents than its own allow.

There are far more factors than documents, so that the documents which choose a direction say little about how far to
go along it: their Fisher information has no curvature for most of what they fit. So the direction is chosen by all but
one part of the documents and judged, slope and curvature, by that part; over all parts in turn this gives the length,
and an honest forecast of what the step gains. Direction: -(F + D)⁻¹ g with D = damping · (diag F + mean diag F).

The log b of the inverse temperature is one more coordinate of what is measured. It may be taken at will and is never
applied, so it is projected out, and its own best step is returned beside that of the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.evidence import Grouping
from planner.evidence.measured import Floats
from planner.evidence.quadratic import natural_step

__all__ = ["DriftPenalty", "Point", "Step", "leave_one_out", "leave_one_out_of_step", "next_step", "parts_of"]

PARTS = 5
"""Parts of the documents: the more, the nearer are those that choose to all of them."""
DAMPING = 1.0
"""Results hardly depend on it, because the length is found by other documents; 1 to 3 are alike."""
TRUST = 0.2
"""Nats: the largest divergence of a step that the quadratic is believed for."""
LARGEST_STEP, LARGEST_LOG = 0.5, float(np.log(3.0))
"""Of a log factor: in one step, and in all."""
LARGEST_TEMPERATURE_STEP = 0.5


@dataclass(frozen=True, eq=False)
class Point:
    """What was measured at one point, for each group of documents; the last column is by log b."""

    gradient: Floats
    """[groups, n + 1]: derivatives of the loss, summed over each group."""
    scores: Floats
    """[draws, groups, n + 1]: the same with labels drawn from the model."""

    def columns(self, chosen: NDArray[np.int64]) -> Point:
        """The same over some of the factors."""
        kept = np.append(chosen, self.gradient.shape[1] - 1)
        return Point(self.gradient[:, kept], self.scores[:, :, kept])


@dataclass(frozen=True, eq=False)
class DriftPenalty:
    """weight · ½ sᵀ F s, with F the Fisher information of the model as it is on neutral text."""

    weight: float
    grouping: Grouping
    scores: Floats
    """[groups, n]: of the neutral text, at temperature one."""

    def columns(self, chosen: NDArray[np.int64]) -> DriftPenalty:
        """The same over some of the factors."""
        return DriftPenalty(self.weight, self.grouping, self.scores[:, chosen])

    def drift(self, at: Floats) -> float:
        """Predicted KL divergence from the model as it is at the point `at`, nats per token."""
        along = self.scores @ at
        return float(0.5 * (along @ along) / self.grouping.weights.sum())


@dataclass(frozen=True, eq=False)
class Step:
    """One step, and what it is expected to bring."""

    move: Floats
    """[n]: what to add to the logs of the factors."""
    temperature: float
    """What to add to log b."""
    length: float
    """Of the full natural-gradient step, how much is taken."""
    gain: float
    """Predicted fall of the loss (penalty included) on documents that did not choose it, nats."""
    by_part: Floats
    """[parts, n]: the slope along each factor's share of the step, as each part of the documents judges it; positive
    where it helps."""


@dataclass(frozen=True, eq=False)
class _Local:
    gradient: Floats
    scores: Floats
    temperature_slope: float
    along: Floats


def parts_of(grouping: Grouping, most: int = PARTS) -> NDArray[np.int64]:
    """[groups]: a number below `most` for each, dealt in turn within each side; as many parts as the smaller side has
    groups, where those are fewer."""
    counts = [int((grouping.side == side).sum()) for side in np.unique(grouping.side)]
    count = min(most, *counts)
    part = np.zeros(len(grouping.side), np.int64)
    for side in np.unique(grouping.side):
        members = np.flatnonzero(grouping.side == side)
        part[members] = np.arange(len(members)) % count
    return part


def next_step(points: Sequence[Point], goal: Grouping, penalty: DriftPenalty | None, at: Floats) -> Step | None:
    """The step from `at`, [n], where the last of `points` was measured; the curvature is the mean of all points'.

    None where the parts of the documents contradict one another, so that nothing more can be learnt from them, and
    where there are fewer than two groups.
    """
    parts = parts_of(goal)
    count = int(parts.max()) + 1
    neutral = parts_of(penalty.grouping, count) if penalty else None
    if count < 2 or (neutral is not None and int(neutral.max()) + 1 < count):
        return None
    slope = bend = 0.0
    judged = []
    for number in range(count):
        drift = neutral != number if neutral is not None else None
        theirs = _local(points, goal, parts != number, penalty, drift, at)
        mine = _local(points, goal, parts == number, penalty, None if drift is None else ~drift, at)
        direction = natural_step(theirs.gradient, theirs.scores, DAMPING)
        along = mine.scores @ direction
        judged.append(-mine.gradient * direction)
        slope += float(judged[-1].sum()) / count
        bend += float(along @ along) / count
    if slope <= 0 or bend <= 0:
        return None
    length = min(slope / bend, float(np.sqrt(2 * TRUST / bend)))
    whole = _local(points, goal, parts >= 0, penalty, None if neutral is None else neutral >= 0, at)
    wanted = length * natural_step(whole.gradient, whole.scores, DAMPING)
    move = np.clip(np.clip(wanted, -LARGEST_STEP, LARGEST_STEP) + at, -LARGEST_LOG, LARGEST_LOG) - at
    temperature = -whole.temperature_slope - float(whole.along @ move)
    return Step(
        move=move,
        temperature=float(np.clip(temperature, -LARGEST_TEMPERATURE_STEP, LARGEST_TEMPERATURE_STEP)),
        length=length,
        gain=length * slope - 0.5 * length**2 * bend,
        by_part=length * np.array(judged),
    )


def leave_one_out(point: Point, goal: Grouping, at: Floats, slices: Sequence[slice]) -> Floats:
    """[slices]: how much the loss is predicted to rise where one slice of factors goes back to one, the others stay.

    `point` was measured at `at`.
    """
    local = _local([point], goal, np.ones(len(goal.side), bool), None, None, at)
    found = []
    for part in slices:
        along = local.scores[:, part] @ at[part]
        found.append(float(-(local.gradient[part] @ at[part]) + 0.5 * (along @ along)))
    return np.array(found)


def leave_one_out_of_step(point: Point, goal: Grouping, slices: Sequence[slice]) -> Floats:
    """[slices]: as `leave_one_out`, at the end of the first step, from its start alone.

    `point` was measured at 0. Each part of the documents judges the step that the others take.
    """
    parts = parts_of(goal)
    nowhere = np.zeros(point.gradient.shape[1] - 1)
    step = next_step([point], goal, None, nowhere)
    missed = np.zeros(len(slices))
    if step is None:
        return missed
    for number in range(int(parts.max()) + 1):
        theirs = _local([point], goal, parts != number, None, None, nowhere)
        mine = _local([point], goal, parts == number, None, None, nowhere)
        move = step.length * natural_step(theirs.gradient, theirs.scores, DAMPING)
        slope = mine.gradient + mine.scores.T @ (mine.scores @ move)
        for place, part in enumerate(slices):
            along = mine.scores[:, part] @ move[part]
            missed[place] += -(slope[part] @ move[part]) + 0.5 * (along @ along)
    return missed


def _local(
    points: Sequence[Point],
    goal: Grouping,
    chosen: NDArray[np.bool_],
    penalty: DriftPenalty | None,
    neutral: NDArray[np.bool_] | None,
    at: Floats,
) -> _Local:
    """The quadratic around `at` from some of the groups, with the temperature projected out (Schur complement)."""
    totals = np.bincount(goal.side[chosen], weights=goal.weights[chosen], minlength=2)[goal.side[chosen]]
    gradient = (goal.signs[chosen] / totals) @ points[-1].gradient[chosen]
    rows = []
    for point in points:
        scale = 1 / np.sqrt(totals * len(point.scores) * len(points))
        rows += [scale[:, None] * draw[chosen] for draw in point.scores]
    scores = np.concatenate(rows)
    level = scores[:, -1]
    bend = max(float(level @ level), float(np.finfo(float).tiny))
    along = level @ scores[:, :-1] / bend
    slope = float(gradient[-1]) / bend
    factors = scores[:, :-1] - np.outer(level, along)
    downhill = gradient[:-1] - float(gradient[-1]) * along
    if penalty is not None and neutral is not None and penalty.weight > 0:
        share = penalty.scores[neutral] * np.sqrt(penalty.weight / penalty.grouping.weights[neutral].sum())
        downhill = downhill + share.T @ (share @ at)
        factors = np.concatenate([factors, share])
    return _Local(downhill, factors, slope, along)
