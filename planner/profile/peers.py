"""How a tensor compares with its peers: the tensors of the same role, shape and dtype in the other layers.

The comparison is robust (median and median absolute deviation), so that one strange layer does not hide itself, and on
one of two scales. What is a positive magnitude (std, rms, a norm, a rank) is compared by its logarithm: twice and half
the median then stand out alike, and layers that grow by factors lie evenly. What can be zero or negative, or counts
from a natural zero (mean, skewness, excess kurtosis, shares), is compared as it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from planner.profile.types import TensorProfile

__all__ = ["STATISTICS", "Measure", "Standing", "peer_groups", "robust_scores", "standings"]

T = TypeVar("T")


@dataclass(frozen=True)
class Measure:
    """A statistic that peers can be compared by."""

    of: Callable[[TensorProfile], float | None]
    """Its value; None where a tensor has none."""
    logarithmic: bool
    """Whether it is compared by its logarithm; a tensor where it is not positive then has no standing."""


@dataclass(frozen=True)
class Standing:
    """Where a tensor's statistic stands among those of its peers."""

    tensor: TensorProfile
    value: float
    typical: float
    """Median of the group, the tensor's own included."""
    robust_z: float
    """As `robust_scores` has it, of the logarithms or of the values themselves."""


@dataclass(frozen=True)
class Scores(Generic[T]):
    """A median, and how far each of the things that have a value stands from it."""

    typical: float
    scored: list[tuple[T, float, float]]
    """The thing, its value, its robust z."""


def _share(tensor: TensorProfile, count: int | None) -> float | None:
    return count / tensor.elements if count is not None and tensor.elements and tensor.understood else None


def _field(name: str, logarithmic: bool) -> Measure:
    return Measure(lambda tensor: getattr(tensor, name), logarithmic)


def _spectral(name: str) -> Measure:
    return Measure(lambda tensor: getattr(tensor.spectrum, name, None), logarithmic=True)


STATISTICS: dict[str, Measure] = {
    **{name: _field(name, logarithmic=True) for name in ("std", "rms", "abs_max", "l2_norm")},
    **{name: _field(name, logarithmic=False) for name in ("kurtosis", "skewness", "mean", "min", "max", "entropy")},
    # The mean of a weight says little without its spread.
    "offset": Measure(lambda t: t.mean / t.std if t.mean is not None and t.std else None, logarithmic=False),
    # How far the largest element lies out, in standard deviations.
    "reach": Measure(lambda t: t.abs_max / t.std if t.abs_max is not None and t.std else None, logarithmic=True),
    "zeros": Measure(lambda t: _share(t, t.zeros), logarithmic=False),
    "subnormals": Measure(lambda t: _share(t, t.subnormals), logarithmic=False),
    "outliers_3": Measure(lambda t: _share(t, t.outliers.get("3")), logarithmic=False),
    "outliers_6": Measure(lambda t: _share(t, t.outliers.get("6")), logarithmic=False),
    "row_cv": Measure(lambda t: t.rows.cv if t.rows else None, logarithmic=False),
    "column_cv": Measure(lambda t: t.columns.cv if t.columns else None, logarithmic=False),
    **{name: _spectral(name) for name in ("spectral_norm", "stable_rank", "effective_rank", "tail_exponent")},
}
"""Every statistic that layers can be compared by. `zeros`, `subnormals` and `outliers_k` are shares of the elements;
`offset` is mean/std, `reach` is abs_max/std."""


def peer_groups(tensors: Iterable[TensorProfile]) -> list[list[TensorProfile]]:
    """Tensors of the same role, shape and dtype in different layers, in the order of the layers.

    Numbered experts have a role of their own, so an expert's peers are all experts of all layers.
    """
    groups: dict[tuple[str, tuple[int, ...], str], list[TensorProfile]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            groups.setdefault((tensor.role, tensor.shape, tensor.dtype), []).append(tensor)
    return [sorted(group, key=lambda t: (t.layer or 0, t.expert or 0, t.name)) for group in groups.values()]


def standings(group: Sequence[TensorProfile], statistic: str = "rms") -> list[Standing]:
    """The standing of every tensor of a group that has the statistic (see `STATISTICS`)."""
    measure = STATISTICS[statistic]
    found = robust_scores(((tensor, measure.of(tensor)) for tensor in group), logarithmic=measure.logarithmic)
    return [Standing(tensor, value, found.typical, z) for tensor, value, z in found.scored]


def robust_scores(values: Iterable[tuple[T, float | None]], *, logarithmic: bool) -> Scores[T]:
    """How far each value stands from the median, in robust standard deviations.

    z = (x - median) · 0.6745 / median absolute deviation; where more than half of the values agree and that is 0,
    / (1.2533 · mean absolute deviation) instead (Iglewicz and Hoaglin, 1993); 0 where all agree. With `logarithmic`
    x is the logarithm, and what is not positive is left out; so is what is None.
    """
    there = [(thing, value) for thing, value in values if value is not None and (value > 0 or not logarithmic)]
    if not there:
        return Scores(math.nan, [])
    scale = [math.log(value) if logarithmic else value for _, value in there]
    median = statistics.median(scale)
    distances = [abs(value - median) for value in scale]
    # Both factors make the deviation of a normal distribution come out as its standard deviation.
    deviation = statistics.median(distances) / 0.6745 or 1.2533 * statistics.fmean(distances)
    return Scores(
        math.exp(median) if logarithmic else median,
        [
            (thing, value, (place - median) / deviation if deviation > 0 else 0.0)
            for (thing, value), place in zip(there, scale, strict=True)
        ],
    )
