"""How two sets of logits differ: not at all, by a shift, by a factor, by a monotone function, or otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["EXACT", "Difference", "classify", "measure"]

Logits = np.ndarray[Any, Any]

EXACT = 1e-9
"""Largest difference, relative to the largest logit, that still counts as none. Exact no-ops come out below 1e-13."""

_VARIATION = 12
"""A smooth function of the logit goes up and down less than this many times its range; noise, thousands of times."""


@dataclass(frozen=True)
class Difference:
    """Margins of every class, each relative to the largest logit before: below `EXACT` the class applies."""

    largest: float
    """Largest difference of a logit."""
    shifted: float
    """What is left after each position's mean difference is taken out."""
    factor: float
    """The factor that fits best, after = factor x before."""
    rescaled: float
    """What is left after that factor."""
    affine: float
    """What is left after one factor and a shift for each position together: not a class, but tells why it is none."""
    monotone: bool
    """Whether after is one smooth, increasing function of before, over all positions."""

    @property
    def kind(self) -> str:
        """The strongest class that applies."""
        if self.largest < EXACT:
            return "same"
        if self.shifted < EXACT:
            return "shifted"
        if self.rescaled < EXACT and self.factor > 0:
            return "rescaled"
        return "monotone" if self.monotone else "different"


def measure(before: Logits, after: Logits) -> Difference:
    """Margins between two float64 arrays [positions, vocabulary]; raises ValueError if one is not finite."""
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("logits that are not finite cannot be compared")
    size = float(np.abs(before).max())
    change = after - before
    factor = float((before * after).sum() / (before * before).sum())
    centred, moved = before - before.mean(1, keepdims=True), after - after.mean(1, keepdims=True)
    slope = float((centred * moved).sum() / (centred * centred).sum())
    return Difference(
        largest=float(np.abs(change).max()) / size,
        shifted=float(np.abs(change - change.mean(1, keepdims=True)).max()) / size,
        factor=factor,
        rescaled=float(np.abs(after - factor * before).max()) / size,
        affine=float(np.abs(moved - slope * centred).max()) / size,
        monotone=_is_monotone(before.ravel(), after.ravel(), size),
    )


def _is_monotone(before: Logits, after: Logits, size: float) -> bool:
    """Sorted by the logit before, the logit after never falls, is not all one, and changes without noise.

    A change so small that no order flips would pass the first half alone; but a change that is a function of the logit
    runs smoothly along it, whatever its size, while any other jumps from one logit to the next.
    """
    order = np.argsort(before, kind="stable")
    x, y = before[order], after[order]
    if (np.diff(y) < -EXACT * size).any() or np.ptp(y) < EXACT * size:
        return False
    change = y - x
    extent = float(np.ptp(change))
    return float(np.abs(np.diff(change)).sum()) <= _VARIATION * extent + EXACT * size


def classify(before: Logits, after: Logits) -> str:
    """Which it is: "same", "shifted" (by one number a position), "rescaled" (positively), "monotone" or "different"."""
    return measure(before, after).kind
