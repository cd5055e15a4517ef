"""Numbers and rows the way a model reads them in the results of tools, and can copy them into a plan.

Six significant digits are far within the tolerance that cited values are compared with. Tiny and huge values are
written in scientific notation, where no zeros have to be counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from planner.evidence.gradients import FARTHEST

__all__ = ["factor_text", "facts_line", "figure", "row", "shape_text"]

_SMALLEST, _LARGEST = 1e-3, 1e5
_NEAR_ONE = 0.05


def figure(value: float | None, digits: int = 6) -> str:
    """A number with so many significant digits, scientific below 1e-3 and from 1e5 on; an int in full; `null` for None.

    What is no fact to cite may have fewer than 6.
    """
    if value is None or not math.isfinite(value):
        return "null"
    if isinstance(value, int):
        return str(int(value))
    if value == 0:
        return "0"
    return f"{value:.{digits}g}" if _SMALLEST <= abs(value) < _LARGEST else f"{value:.{digits - 1}e}"


def factor_text(step: float | None) -> str:
    """The factor of a step of its logarithm, such as `x1.31`.

    A longer step than is predicted is cut, as its gain is: `at least x2.72`, `at most x0.368`.
    """
    if step is None:
        return "none"
    factor = math.exp(max(-FARTHEST, min(FARTHEST, step)))
    cut = "" if abs(step) <= FARTHEST else "at least " if step > 0 else "at most "
    return f"{cut}x{factor:.5g}" if abs(factor - 1) < _NEAR_ONE else f"{cut}x{factor:.3g}"


def shape_text(shape: Iterable[int]) -> str:
    """Dimensions, such as `64x128`; `scalar` where there are none."""
    return "x".join(map(str, shape)) or "scalar"


def facts_line(facts: Iterable[tuple[str, float | None]]) -> str:
    """Facts by name, such as `std = 0.0312, kurtosis = 1.5`."""
    return ", ".join(f"{name} = {figure(value)}" for name, value in facts)


def row(*cells: str) -> str:
    """One row of a table."""
    return " | ".join(cells)
