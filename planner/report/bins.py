"""Histograms as a page can carry them: at most 64 bins a tensor, whatever was counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from planner.profile import TensorProfile

__all__ = ["MOST_BINS", "Bins", "Histograms", "binned", "rounded"]

Bins = tuple[list[float], list[int]]
"""Edges, rising, one more than there are bins; and how many elements lie in each bin."""

Histograms = Callable[[str], Bins | None]
"""A tensor's name to its histogram; None where none was kept."""

MOST_BINS = 64


def binned(bins: Bins, tensor: TensorProfile) -> list[Any] | None:
    """[edges, counts, below, above], or None if there is nothing to draw.

    More than 64 bins are counted again into 64 of one width, whose edges are then just the first and the last: over the
    whole range, or where outliers would squeeze everything into one bar, over the central 99.8 % and a margin, with the
    elements `below` and `above`. A bin that is cut is shared out by width; the total stays exact.
    """
    edges, counts = np.asarray(bins[0], dtype=np.float64), np.asarray(bins[1], dtype=np.float64)
    sound = len(counts) > 0 and len(edges) == len(counts) + 1 and bool(np.isfinite(edges).all())
    if not sound or bool((np.diff(edges) < 0).any()) or not counts.any():
        return None
    if len(counts) <= MOST_BINS:
        return [[rounded(edge) for edge in edges.tolist()], [int(count) for count in counts.tolist()], 0, 0]
    low, high = _window(float(edges[0]), float(edges[-1]), tensor)
    if not math.isfinite(high - low):  # the ends of 64-bit floats
        return None
    total = np.concatenate([[0.0], np.cumsum(counts)])
    at = np.rint(np.interp(np.linspace(low, high, MOST_BINS + 1), edges, total))
    if low == edges[0]:
        at[0] = 0
    if high == edges[-1]:
        at[-1] = total[-1]
    inside = [int(count) for count in np.diff(at).tolist()]
    return [[rounded(low), rounded(high)], inside, int(at[0]), int(total[-1] - at[-1])]


def _window(first: float, last: float, tensor: TensorProfile) -> tuple[float, float]:
    low, high = tensor.quantiles.get("0.001"), tensor.quantiles.get("0.999")
    if low is None or high is None or not low < high or last - first <= 2 * (high - low):
        return first, last
    margin = (high - low) / 8
    return max(first, low - margin), min(last, high + margin)


def rounded(number: float | None) -> float | int | None:
    """Six significant digits; integers stay whole."""
    if number is None or isinstance(number, int):
        return number
    short = float(f"{number:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e6 else short
