"""How the loss changes with each of many steps, each taken alone, as arrays: slopes, curvatures, best steps, gains.

An evidence file holds these numbers for whole tensors and for the rows and columns that are most sensitive. From its
arrays they follow for every row and column, by the same formulas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.evidence.measured import Floats, Measured, Scores
from planner.evidence.quadratic import Quadratic
from planner.evidence.types import Gradient

__all__ = ["FARTHEST", "ROUNDING", "Gradients", "units_alone"]

FARTHEST = 1.0
"""The longest step that is predicted: a factor of e, or of 1/e."""
ROUNDING = 1e-4
"""What rounding leaves of scores that are zero in exact arithmetic, relative to the largest, in float32."""
_BLOCK = 2**16


@dataclass(frozen=True, eq=False)
class Gradients:
    """One number an array for each of n steps; what each means is said in `Gradient`."""

    raw: Floats
    """[n]."""
    raw_se: Floats | None
    """[n]; None with fewer than two groups of documents."""
    calibrated: Floats
    """[n]."""
    calibrated_se: Floats | None
    """[n]; None with fewer than two groups of documents."""
    stable: NDArray[np.bool_] | None
    """[n]; None with fewer than two groups of documents."""
    curvature: Floats
    """[n]."""
    drift: Floats
    """[n]."""
    step: Floats
    """[n]: NaN where there is none."""
    gain: Floats
    """[n]."""

    @classmethod
    def of(cls, models: Iterable[Quadratic], rounding: float = ROUNDING) -> Gradients:
        """Of every step of some models over the same documents, one model after another.

        Without curvature there is no step. Where a scale changes nothing, or no more than the temperature does, what is
        left of its scores is rounding, and a quotient of rounding by rounding would look like a gain.
        """
        parts = [_Slopes.of(model) for model in models]
        raw, raw_se = _joined(part.raw for part in parts), _known(part.raw_se for part in parts)
        mean, error = _joined(part.mean for part in parts), _known(part.error for part in parts)
        agree = None if error is None else np.concatenate([part.agree for part in parts])
        curvature, drift = _joined(part.curvature for part in parts), _joined(part.drift for part in parts)
        largest = max((part.largest for part in parts), default=0.0)
        steep = curvature > max(rounding**2 * largest, float(np.finfo(np.float32).tiny))
        steps = np.divide(-mean, curvature, out=np.zeros_like(mean), where=steep)
        reached = np.clip(steps, -FARTHEST, FARTHEST)
        return cls(
            raw=raw,
            raw_se=raw_se,
            calibrated=mean,
            calibrated_se=error,
            stable=agree,
            curvature=curvature,
            drift=drift,
            step=np.where(steep, steps, np.nan),
            gain=-(mean * reached + 0.5 * curvature * reached**2),
        )

    @classmethod
    def of_units(cls, measured: Measured, rounding: float = ROUNDING) -> Gradients:
        """Of the log factor of every row and column, in the order of the layout's units.

        They are taken in blocks: a model of 10⁹ weights has about 10⁶ rows and columns, each with a number a group of
        documents in five sets.
        """
        count = measured.layout.units
        return cls.of(
            (units_alone(measured, slice(begin, begin + _BLOCK)) for begin in range(0, max(count, 1), _BLOCK)), rounding
        )

    def at(self, number: int) -> Gradient:
        """One of them as a record."""
        step = float(self.step[number])
        return Gradient(
            raw=float(self.raw[number]),
            raw_se=None if self.raw_se is None else float(self.raw_se[number]),
            calibrated=float(self.calibrated[number]),
            calibrated_se=None if self.calibrated_se is None else float(self.calibrated_se[number]),
            stable=None if self.stable is None else bool(self.stable[number]),
            curvature=float(self.curvature[number]),
            drift=float(self.drift[number]),
            step=None if np.isnan(step) else step,
            gain=float(self.gain[number]),
        )


def units_alone(measured: Measured, where: slice) -> Quadratic:
    """The model over some of the rows and columns alone; `where` are their places among the layout's units."""
    sets = {name: Scores(scores.tensors, scores.units[:, where]) for name, scores in measured.sets.items()}
    return Quadratic.of(Measured(measured.layout, measured.goal, measured.drift, sets), "units")


@dataclass(frozen=True, eq=False)
class _Slopes:
    """What one model gives, before anything is compared with the largest of all."""

    raw: Floats
    raw_se: Floats | None
    mean: Floats
    error: Floats | None
    agree: NDArray[np.bool_]
    curvature: Floats
    drift: Floats
    largest: float

    @classmethod
    def of(cls, model: Quadratic) -> _Slopes:
        error = model.gradient_se
        first, second = (
            model.goal.mean(model.calibrated, half) if error is not None else model.gradient for half in (0, 1)
        )
        return cls(
            raw=model.goal.mean(model.raw),
            raw_se=model.goal.standard_error(model.raw),
            mean=model.gradient,
            error=error,
            agree=np.sign(first) == np.sign(second),
            curvature=model.curvature(),
            drift=model.drift_curvature(),
            largest=float(model.curvature_with_temperature().max(initial=0.0)),
        )


def _joined(parts: Iterable[Floats]) -> Floats:
    return np.concatenate(list(parts))


def _known(parts: Iterable[Floats | None]) -> Floats | None:
    """All of them; None where they are not known, which holds for all models over the same documents."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None
