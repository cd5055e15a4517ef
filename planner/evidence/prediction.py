"""What a plan is predicted to do to the loss and to the drift, before anything runs.

Second order around the weights as they are, over the logs of the factors of rows and columns:

    loss: g·s + ½ sᵀ F s        drift: ½ sᵀ F_drift s

In logs, edits that cancel exactly (`q` times 2, `k` times a half) are predicted to cancel exactly, however far they go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.evidence.analysis import rank_of
from planner.evidence.measured import Floats, Grouping, Measured
from planner.evidence.quadratic import Quadratic
from planner.evidence.types import EvidenceFile
from planner.records import Record

__all__ = ["Move", "PredictedChange", "PredictedModification", "Prediction", "predict"]

LARGEST_RMS, LARGEST_LOG, LARGEST_DRIFT = 0.25, 1.0, 0.5
"""Where the prediction is trusted: root mean square of the log factors of each tensor; the largest of them; nats a
token of predicted drift. Within, random plans on the bundled model came out within three standard errors."""
_SAME = 1e-4
_MOST_LISTED = 8


@dataclass(frozen=True, eq=False)
class Move:
    """What one modification does to one tensor, as far as it can be predicted."""

    tensor: str
    rows: Floats | float = 0.0
    """Log factors of the rows, or one for all."""
    columns: Floats | float = 0.0
    """Log factors of the columns, or one for all."""
    shift: float = 0.0
    """Added to every element."""


class PredictedChange(Record):
    """A predicted change of a loss."""

    difference: float
    """Nats per token (or question): negative is better."""
    se: float | None
    """Standard error over documents; null with fewer than two groups of them."""
    first_order: float
    """The part that the gradient says."""
    curvature: float
    """The part that the Fisher information adds."""


class PredictedModification(Record):
    """What one modification, by itself, is predicted to do."""

    id: str
    """The modification."""
    raw: PredictedChange
    """The loss as it is."""
    calibrated: PredictedChange
    """The loss with the temperature refitted before and after."""
    drift: float
    """KL divergence on the drift text, nats per token."""


class Prediction(Record):
    """What a plan is predicted to do, from the evidence alone."""

    evidence: str
    """The id of the evidence."""
    raw: PredictedChange
    """The objective as it is."""
    calibrated: PredictedChange
    """The objective with the temperature refitted before and after."""
    drift: float
    """KL divergence from the model as it is, on the drift text, nats per token."""
    drift_se: float | None
    """Its standard error over documents; null with fewer than two groups of them."""
    temperature_share: float
    """How much of what it does to the predictions of the goal text a change of temperature would do too, 0 to 1."""
    independent: int
    """How many different edits its modifications are."""
    same: tuple[tuple[str, ...], ...]
    """Modifications that are one and the same edit, up to its size."""
    cancelling: tuple[tuple[str, ...], ...]
    """Those of `same` that together change nothing."""
    trusted: bool
    """Whether the plan stays where such predictions were found to hold."""
    why: str
    """Why, or why not."""
    modifications: tuple[PredictedModification, ...]
    """Each by itself."""
    not_predicted: dict[str, str]
    """Modifications that are no such edit, and why; they are left out of everything above."""


def predict(
    evidence: EvidenceFile, measured: Measured, moves: Mapping[str, Sequence[Move]], not_predicted: Mapping[str, str]
) -> Prediction:
    """The prediction for modifications by their id. Tensors that were not measured must have been left out."""
    names = list(moves)
    layout = measured.layout
    steps, shifts = np.zeros((layout.tensors, len(names))), np.zeros((layout.tensors, len(names)))
    fine = any(not isinstance(part, float) for each in moves.values() for m in each for part in (m.rows, m.columns))
    units = np.zeros((layout.units, len(names))) if fine else None
    for column, name in enumerate(names):
        for move in moves[name]:
            place = layout.places[move.tensor]
            shifts[place.number, column] += move.shift
            for part, where in ((move.rows, place.rows), (move.columns, place.columns)):
                if isinstance(part, float):
                    steps[place.number, column] += part
                elif units is not None:
                    units[where, column] += part
    along = Quadratic.along(measured, steps, shifts=shifts, units=units)
    temperature = _temperature(measured, along.goal)
    every = np.ones(len(names))
    single = [np.eye(len(names))[n] for n in range(len(names))]
    scores = np.concatenate([along.fisher_raw, along.fisher_drift])
    same = _same(scores, names)
    drift = _drift(along, every)
    drifts = {name: _drift(along, one) for name, one in zip(names, single, strict=True)}
    trusted, why = _trust(moves, drift, drifts, not_predicted)
    return Prediction(
        evidence=evidence.id,
        raw=_raw(along, every),
        calibrated=_calibrated(along, every),
        drift=drift,
        drift_se=_drift_se(along, every),
        temperature_share=_share(along.fisher_raw @ every, temperature),
        independent=rank_of(scores) if names else 0,
        same=same,
        cancelling=tuple(each for each in same if _cancels(scores[:, [names.index(name) for name in each]])),
        trusted=trusted,
        why=why,
        modifications=tuple(
            PredictedModification(id=name, raw=_raw(along, one), calibrated=_calibrated(along, one), drift=drifts[name])
            for name, one in zip(names, single, strict=True)
        ),
        not_predicted=dict(not_predicted),
    )


def _temperature(measured: Measured, goal: Grouping) -> Floats:
    """[groups]: the scores by log temperature, scaled as those of the goal are."""
    column = measured.sets["fisher_raw"].tensors[:, -1:]
    if len(column) != len(goal.weights):
        column = measured.goal.merge(column)
    return np.asarray(column[:, 0] / np.sqrt(goal.totals))


def _raw(along: Quadratic, weights: Floats) -> PredictedChange:
    return _change(along.goal, along.raw @ weights, along.fisher_raw @ weights)


def _calibrated(along: Quadratic, weights: Floats) -> PredictedChange:
    return _change(along.goal, along.calibrated @ weights, along.fisher @ weights)


def _change(goal: Grouping, derivatives: Floats, scores: Floats) -> PredictedChange:
    first = float(goal.mean(derivatives[:, None])[0])
    squares = goal.signs * scores**2
    # The curvature varies over groups as well: each group's share of it joins its share of the gradient.
    both = derivatives + 0.5 * scores**2 * goal.totals
    error = goal.standard_error(both[:, None])
    second = float(0.5 * squares.sum())
    return PredictedChange(
        difference=first + second, se=None if error is None else float(error[0]), first_order=first, curvature=second
    )


def _drift(along: Quadratic, weights: Floats) -> float:
    scores = along.fisher_drift @ weights
    return float(0.5 * scores @ scores)


def _drift_se(along: Quadratic, weights: Floats) -> float | None:
    squares = 0.5 * (along.fisher_drift @ weights) ** 2 * along.drift_groups.totals
    error = along.drift_groups.standard_error(squares[:, None])
    return None if error is None else float(error[0])


def _share(scores: Floats, temperature: Floats) -> float:
    lengths = float(scores @ scores) * float(temperature @ temperature)
    return min(float(scores @ temperature) ** 2 / lengths, 1.0) if lengths > 0 else 0.0


def _same(scores: Floats, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of modifications whose scores are multiples of one another."""
    lengths = np.linalg.norm(scores, axis=0)
    largest = float(lengths.max(initial=0.0))
    left = [n for n in range(len(names)) if lengths[n] > _SAME * largest]
    found = []
    while left:
        first = left[0]
        unit = scores[:, first] / lengths[first]
        mine = [n for n in left if np.linalg.norm(scores[:, n] - (unit @ scores[:, n]) * unit) <= _SAME * lengths[n]]
        if len(mine) > 1:
            found.append(tuple(names[n] for n in mine))
        left = [n for n in left if n not in mine]
    return tuple(found)


def _cancels(scores: Floats) -> bool:
    return bool(np.linalg.norm(scores.sum(axis=1)) <= 10 * _SAME * np.linalg.norm(scores, axis=0).max())


def _trust(
    moves: Mapping[str, Sequence[Move]], drift: float, drifts: Mapping[str, float], not_predicted: Mapping[str, str]
) -> tuple[bool, str]:
    """Whether every tensor stays near enough, all modifications of it together, and the plan drifts little enough.

    `drifts` are those of each modification by itself. The reason names the modifications that are to blame.
    """
    doubts = [_left_out(list(not_predicted))] if not_predicted else []
    if far := _too_far(moves):
        doubts.append(far)
    if drift > LARGEST_DRIFT:
        worst = max(drifts, key=lambda name: drifts[name])
        doubts.append(
            f"a drift of {drift:.2g} nats is predicted (by {worst} alone {drifts[worst]:.2g}); predictions are trusted "
            f"up to {LARGEST_DRIFT:g}"
        )
    return not doubts, "; ".join(doubts) or "every factor is close to one, and little drift is predicted"


def _left_out(names: Sequence[str]) -> str:
    many = len(names) > 1
    return (
        f"{len(names)} {'modifications are' if many else 'modification is'} no scale or shift that can be predicted, "
        f"and {'are' if many else 'is'} left out: {_listed(names)}"
    )


def _too_far(moves: Mapping[str, Sequence[Move]]) -> str:
    """The first tensor that goes too far, who moves it, and how many others do; empty where none does."""
    rows: dict[str, Floats | float] = {}
    columns: dict[str, Floats | float] = {}
    movers: dict[str, list[str]] = {}
    for modification, each in moves.items():
        for move in each:
            rows[move.tensor] = rows.get(move.tensor, 0.0) + move.rows
            columns[move.tensor] = columns.get(move.tensor, 0.0) + move.columns
            movers.setdefault(move.tensor, []).append(modification)
    found: list[tuple[str, float, float]] = []
    for name, down in rows.items():
        total = np.add.outer(np.atleast_1d(down), np.atleast_1d(columns[name]))
        rms, most = float(np.sqrt(np.mean(total**2))), float(np.abs(total).max())
        if rms > LARGEST_RMS or most > LARGEST_LOG:
            found.append((name, rms, most))
    if not found:
        return ""
    name, rms, most = found[0]
    at_fault = list(dict.fromkeys(modification for tensor, _, _ in found for modification in movers[tensor]))
    others = f", as {len(found) - 1} more do" if len(found) > 2 else ", as one more does" if len(found) > 1 else ""
    return (
        f"{name} goes too far{others} (by {_listed(at_fault)}): its factors are {np.exp(rms):.3g} times off one on "
        f"average and {np.exp(most):.3g} at most; predictions are trusted to {np.exp(LARGEST_RMS):.3g} and "
        f"{np.exp(LARGEST_LOG):.3g}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_LISTED]) + (f" and {len(names) - _MOST_LISTED} more" * (len(names) > _MOST_LISTED))
