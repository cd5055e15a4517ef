"""Numbers and lists as sentences have them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["joined", "listed", "number", "score", "times"]


def number(value: float) -> str:
    """Three digits, or a whole number between 1,000 and 10,000,000."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def score(z: float) -> str:
    """A robust z with its sign: one decimal, none from 100 on, and no more than that it is beyond 999."""
    if abs(z) > 999:
        return ">+999" if z > 0 else "<-999"
    return f"{z:+.1f}" if abs(z) < 100 else f"{z:+.0f}"


def times(ratio: float) -> str:
    """`0.02x`, `3.2x` or `12x`."""
    return f"{ratio:,.0f}x" if 9.5 <= ratio < 1e7 else f"{ratio:.2g}x"


def joined(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def listed(numbers: Sequence[int]) -> str:
    """`1-3 and 9` for [1, 2, 3, 9], which must ascend; at most 12 parts."""
    runs: list[list[int]] = []
    for found in numbers:
        if runs and found == runs[-1][-1] + 1:
            runs[-1].append(found)
        else:
            runs.append([found])
    words = [word for run in runs for word in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run))]
    return joined(words if len(words) <= 12 else [*words[:12], f"{len(words) - 12} more"])
