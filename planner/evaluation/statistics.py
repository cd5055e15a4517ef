"""Paired statistics over documents: the difference of two losses, its interval, its p-value, what it could have seen.

Every function takes per-document arrays of shape [n]: `differences` in nats (candidate minus baseline, summed over the
document's tokens) and `tokens`, the predicted tokens. The documents are the sampling unit; tokens of one document
depend on each other and are never resampled apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from planner.errors import SuiteInvalid

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "Comparison",
    "bootstrap_interval",
    "compare",
    "holm",
    "minimum_detectable_effect",
    "ratio_difference",
    "sign_flip_p_value",
]

Floats = NDArray[np.float64]
LEVEL = 0.05
"""Two-sided level of every test; intervals hold 1 - LEVEL."""
RESAMPLES = 10_000
"""Bootstrap resamples, and random flips where 2^n flips are too many to enumerate."""
_POWER = 0.80
_EXACT_UP_TO = 14
_CHUNK_ELEMENTS = 2**20


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two losses; lower is better."""

    difference: float
    """Candidate minus baseline, nats per token."""
    interval: tuple[float, float]
    """95 % percentile bootstrap interval of the difference, over documents."""
    p_value: float
    """Two-sided, paired sign-flip permutation test."""
    test: str
    """How the p-value was computed."""
    share_better: float
    """Share of documents on which the candidate's loss is strictly lower."""
    mde: float | None
    """The smallest true difference found with 80 % power, nats per token; None when no difference could be."""


def compare(differences: Floats, tokens: Floats, *, seed: int = 0) -> Comparison:
    """All of a `Comparison` from n documents. Raises `SuiteInvalid` for n < 2 or a document without a token."""
    n = len(differences)
    if n < 2:
        raise SuiteInvalid(f"a paired comparison needs at least 2 documents, found {n}", hint="add documents")
    if np.any(tokens <= 0):
        place = int(np.argmax(tokens <= 0)) + 1
        raise SuiteInvalid(f"document {place} has no token to predict", hint="remove it, or make it longer")
    exact = n <= _EXACT_UP_TO
    return Comparison(
        difference=ratio_difference(differences, tokens),
        interval=bootstrap_interval(differences, tokens, seed=seed),
        p_value=sign_flip_p_value(differences, seed=seed),
        test=f"paired sign flip, {'all 2^n flips' if exact else f'{RESAMPLES} random flips'}",
        share_better=float(np.mean(differences < 0)),
        mde=minimum_detectable_effect(differences, tokens),
    )


def ratio_difference(differences: Floats, tokens: Floats) -> float:
    """The ratio of sums sum(differences) / sum(tokens), nats per token: the difference of the two corpus losses."""
    return float(differences.sum() / tokens.sum())


def bootstrap_interval(
    differences: Floats, tokens: Floats, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of `ratio_difference`, over documents (Efron & Tibshirani 1993, ch. 13).

    Whole documents are resampled, numerator and denominator together, so a resample of long documents weighs as the
    corpus would. Memory is bounded: 8 MiB of indices at a time.
    """
    rng = np.random.default_rng([seed, 0])
    n = len(differences)
    drawn: list[Floats] = []
    for count in _chunks(resamples, n):
        rows = rng.integers(0, n, size=(count, n))
        drawn.append(differences[rows].sum(axis=1) / tokens[rows].sum(axis=1))
    low, high = np.quantile(np.concatenate(drawn), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def sign_flip_p_value(differences: Floats, *, seed: int = 0, flips: int = RESAMPLES) -> float:
    """Two-sided p-value of a paired sign-flip permutation test (Fisher 1935, sec. 21), statistic |sum(differences)|.

    Under the null hypothesis the two losses of a document could be exchanged, which flips the sign of its difference
    and leaves its tokens alone, so the ratio's denominator is a constant and drops out. All 2^n flips up to n = 14;
    beyond, (1 + hits) / (1 + flips) over random flips (Phipson & Smyth 2010), which is never 0.
    """
    n = len(differences)
    # Sums of the same numbers in another order differ in the last bits; those count as equal.
    threshold = abs(float(differences.sum())) - 1e-12 * float(np.abs(differences).sum())
    if n <= _EXACT_UP_TO:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ differences) >= threshold))
    rng = np.random.default_rng([seed, 1])
    hits = 0
    for count in _chunks(flips, n):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(count, n), dtype=np.int8)
        hits += int(np.count_nonzero(np.abs(signs @ differences) >= threshold))
    return (1 + hits) / (1 + flips)


def minimum_detectable_effect(differences: Floats, tokens: Floats) -> float | None:
    """The true difference that a two-sided test at `LEVEL` finds with 80 % power, nats per token.

    (z_0.975 + z_0.80) times the standard error of the ratio, linearised (Cochran 1977, sec. 2.11). None for n < 6: with
    so few documents the smallest possible p-value, 2 / 2^n, is above the level.
    """
    n = len(differences)
    if 2.0 / 2.0**n > LEVEL:
        return None
    residuals = differences - ratio_difference(differences, tokens) * tokens
    standard_error = float(np.sqrt(n / (n - 1) * np.square(residuals).sum()) / tokens.sum())
    normal = NormalDist()
    return (normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(_POWER)) * standard_error


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for testing all of them (Holm 1979), so that none is significant by being one of many.

    None, where nothing was tested, stays None and does not count.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, place) in enumerate(order):
        running = max(running, min(1.0, p * (len(order) - rank)))
        adjusted[place] = running
    return adjusted


def _chunks(total: int, width: int) -> Iterator[int]:
    """`total` cut into counts, each with at most `_CHUNK_ELEMENTS` elements in rows of `width`."""
    step = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, total, step):
        yield min(step, total - start)
