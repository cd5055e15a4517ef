"""From the arrays to what people and analysts read: sensitivities with errors, ceilings, how many edits differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.architecture import Band, ModelMap, Parameter, role_of
from planner.evidence.gradients import ROUNDING, Gradients
from planner.evidence.layout import Place
from planner.evidence.measured import Direction, Floats, Measured, Scores, SetName
from planner.evidence.quadratic import Level, Quadratic, crossed, natural_step, predicted_gain
from planner.evidence.types import (
    Ceiling,
    Gauge,
    Gradient,
    LeadingDirection,
    Stability,
    TensorSensitivity,
    TopUnit,
    UnitSensitivity,
)

__all__ = [
    "HOPELESS",
    "Sides",
    "ceilings_of",
    "directions_of",
    "gauge_of",
    "rank_of",
    "rounding_of",
    "stability_of",
    "tensors_of",
    "units_of",
]

HOPELESS = 1e-3
"""Nats: a ceiling below this, two standard errors included, is not worth a search. About 0.1 % of perplexity."""
_DAMPINGS = tuple(10.0 ** (power / 2) for power in range(-4, 5))
_TOP = 5
_TOP_UNITS = 24
_ROUNDING_16 = 3e-2
"""What `ROUNDING` is in 16 bits."""


@dataclass(frozen=True)
class Sides:
    """The two models: over whole tensors, and over rows and columns."""

    tensors: Quadratic
    units: Quadratic

    @classmethod
    def of(cls, measured: Measured) -> Sides:
        """Both, from the arrays."""
        return cls(Quadratic.of(measured, "tensors"), Quadratic.of(measured, "units"))


def rounding_of(dtype: str) -> float:
    """Relative size below which scores are taken for rounding, by what the model ran in."""
    return ROUNDING if dtype in ("float32", "float64") else _ROUNDING_16


def tensors_of(
    measured: Measured,
    sides: Sides,
    directions: Mapping[str, LeadingDirection],
    damping: float,
    rounding: float = ROUNDING,
) -> tuple[TensorSensitivity, ...]:
    """Every tensor; `damping` is that of the ceiling over units."""
    count = measured.layout.tensors
    scales = _gradients(sides.tensors, rounding)
    identity = np.eye(count)
    shifts = _gradients(Quadratic.along(measured, np.zeros((count, count)), shifts=identity, units=None), rounding)
    units = sides.units
    errors = units.gradient_se
    found = []

    def known(place: Place, count: int) -> bool:
        """Whether there is a step: a single row or column is the whole tensor, and may be nothing but rounding."""
        return count > 1 or scales[place.number].step is not None

    for name, place in measured.layout.places.items():
        rows, columns = place.shape
        found.append(
            TensorSensitivity(
                name=name,
                role=role_of(name).role,
                layer=role_of(name).layer,
                rows=rows,
                columns=columns,
                scale=scales[place.number],
                shift=shifts[place.number],
                by_row=_crossed(units, place.rows, damping) if known(place, rows) else 0.0,
                by_column=_crossed(units, place.columns, damping) if known(place, columns) else 0.0,
                top_rows=_top(units.gradient, errors, place.rows) if rows > 1 else (),
                top_columns=_top(units.gradient, errors, place.columns) if columns > 1 else (),
                direction=directions.get(name),
            )
        )
    return tuple(found)


def _gradients(quadratic: Quadratic, rounding: float, most: int | None = None) -> dict[int, Gradient]:
    """One for each step of the model, or for the `most` with the largest gains."""
    found = Gradients.of([quadratic], rounding)
    order = range(len(found.gain)) if most is None else np.argsort(-found.gain, kind="stable")[:most]
    return {int(n): found.at(int(n)) for n in order}


def _top(gradient: Floats, errors: Floats | None, where: slice) -> tuple[TopUnit, ...]:
    mine = gradient[where]
    order = np.argsort(-np.abs(mine), kind="stable")[:_TOP]
    se = None if errors is None else errors[where]
    return tuple(
        TopUnit(index=int(n), calibrated=float(mine[n]), calibrated_se=None if se is None else float(se[n]))
        for n in order
    )


def _crossed(units: Quadratic, where: slice, damping: float) -> float:
    """Predicted gain of these units alone, judged by the other half; what it loses is none."""
    gains = []
    for number in (0, 1):
        gradient, scores = units.half(number)
        other, judge = units.half(1 - number)
        step = natural_step(gradient[where], scores[:, where], damping)
        gains.append(predicted_gain(other[where], judge[:, where], step))
    return max(float(np.mean(gains)), 0.0)


def ceilings_of(sides: Sides) -> tuple[tuple[Ceiling, ...], float]:
    """The ceiling of each kind of edit, and the damping that does best over units."""
    found, best_damping = [], _DAMPINGS[-1]
    kinds: tuple[tuple[Level, Quadratic], ...] = (("tensors", sides.tensors), ("units", sides.units))
    for kind, quadratic in kinds:
        tried = [(crossed(quadratic, damping), damping) for damping in _DAMPINGS]
        best, best_damping = max(tried, key=lambda item: item[0].gain)
        along = quadratic.fisher_drift @ best.step
        found.append(
            Ceiling(
                kind=kind,
                gain=best.gain,
                gain_se=best.gain_se,
                in_sample=max(0.0, best.in_sample),
                drift=float(0.5 * along @ along),
                hopeless=best.reach is not None and best.reach < HOPELESS,
            )
        )
    return tuple(found), best_damping


def gauge_of(measured: Measured, rounding: float = ROUNDING) -> Gauge:
    """How many of the scales of all tensors are different edits of the same function.

    The rank of the scores: a combination of scales that leaves the function alone has none. Both texts count.
    """
    names: tuple[SetName, ...] = ("fisher", "fisher_raw", "fisher_drift")
    if np.array_equal(measured.sets["fisher_raw"].tensors, measured.sets["fisher_drift"].tensors):
        names = names[:2]  # one text
    scores = np.concatenate([measured.sets[name].tensors for name in names])
    rows, level = scores[:, : measured.layout.tensors], scores[:, -1]
    rank = rank_of(rows, rounding)
    return Gauge(
        tensors=measured.layout.tensors,
        independent=rank,
        at_most=min(rows.shape),
        temperature_within=rank < len(rows) and rank_of(np.column_stack([rows, level]), rounding) == rank,
    )


def rank_of(rows: Floats, rounding: float = ROUNDING) -> int:
    """Numerical rank of [groups, n], each column brought to length one."""
    lengths = np.linalg.norm(rows, axis=0)
    used = lengths > rounding * max(float(lengths.max(initial=0.0)), np.finfo(float).tiny)
    if not used.any():
        return 0
    values = np.linalg.svd(rows[:, used] / lengths[used], compute_uv=False)
    return int((values > rounding * values[0]).sum())


def stability_of(sides: Sides) -> Stability:
    """How far the halves agree on whole tensors."""
    quadratic = sides.tensors
    if quadratic.gradient_se is None or quadratic.goal.halves.max(initial=0) == 0:
        return Stability(correlation=None, sign_agreement=None, raw_correlation=None)
    calibrated = [quadratic.goal.mean(quadratic.calibrated, half) for half in (0, 1)]
    raw = [quadratic.goal.mean(quadratic.raw, half) for half in (0, 1)]
    return Stability(
        correlation=_correlation(*calibrated),
        sign_agreement=float(np.mean(np.sign(calibrated[0]) == np.sign(calibrated[1]))),
        raw_correlation=_correlation(*raw),
    )


def _correlation(one: Floats, other: Floats) -> float | None:
    if len(one) < 2 or not np.std(one) or not np.std(other):
        return None
    return float(np.corrcoef(one, other)[0, 1])


def units_of(measured: Measured, model: ModelMap, rounding: float = ROUNDING) -> tuple[UnitSensitivity, ...]:
    """The heads and neurons with the largest gains: what they put out, times a factor."""
    bands = list(_bands(measured, model))
    found: list[UnitSensitivity] = []
    for kind in ("head", "neuron"):
        mine = [(parameter, places) for parameter, band, places in bands if band.unit == kind]
        if not mine:
            continue
        owners = [(parameter, n) for parameter, places in mine for n in range(len(places))]
        gradients = _gradients(_summed(measured, [places for _, places in mine]), rounding, _TOP_UNITS)
        found += [
            UnitSensitivity(kind=kind, layer=owner.layer, index=index, expert=owner.expert, scale=gradient)
            for (owner, index), gradient in ((owners[n], gradient) for n, gradient in gradients.items())
        ]
    return tuple(found)


def _summed(measured: Measured, places: Sequence[NDArray[np.int64]]) -> Quadratic:
    """The model over sums of units; of each tensor `places` is [steps, units a step]."""
    sums = {
        name: Scores(
            scores.tensors,
            np.concatenate([scores.units[:, mine].sum(axis=2, dtype=np.float64) for mine in places], axis=1).astype(
                np.float32
            ),
        )
        for name, scores in measured.sets.items()
    }
    return Quadratic.of(Measured(measured.layout, measured.goal, measured.drift, sums), "units")


def _bands(measured: Measured, model: ModelMap) -> Iterator[tuple[Parameter, Band, NDArray[np.int64]]]:
    """What puts out heads and neurons, with the places of each one's units, [heads or neurons, units each]."""
    for parameter in model.parameters.values():
        place = measured.layout.places.get(parameter.name)
        if place is None:
            continue
        for band in parameter.bands:
            if (band.unit, band.part) in (("head", "output"), ("neuron", "down")):
                begin = (place.rows if band.axis == "rows" else place.columns).start
                yield parameter, band, band.indices.reshape(len(band.indices), -1) + begin


def directions_of(sketched: Mapping[str, Sequence[Direction]]) -> dict[str, LeadingDirection]:
    """By tensor, from the direction of all documents and of each half."""
    found = {}
    for name, (whole, *halves) in sketched.items():
        if not len(whole.strengths) or not whole.strengths[0] > 0:
            continue
        agreement = None
        if len(halves) == 2 and all(half.strengths[0] > 0 for half in halves):
            one, other = halves
            agreement = float(abs(one.left[:, 0] @ other.left[:, 0]) * abs(one.right[0] @ other.right[0]))
        energy = float((whole.strengths**2).sum())
        found[name] = LeadingDirection(
            strength=float(whole.strengths[0]),
            share=float(whole.strengths[0] ** 2 / energy),
            agreement=agreement,
        )
    return found
