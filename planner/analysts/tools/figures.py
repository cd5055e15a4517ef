"""Numbers and rows the way a model reads them in the results of tools, and can copy them into a plan.

Six significant digits are far within the tolerance that cited values are compared with. Tiny and huge values are
written in scientific notation, where no zeros have to be counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["facts_line", "figure", "row", "shape_text"]

_SMALLEST, _LARGEST = 1e-3, 1e5


def figure(value: float | None) -> str:
    """A number with 6 significant digits, scientific below 1e-3 and from 1e5 on; an int in full; `null` for None."""
    if value is None or not math.isfinite(value):
        return "null"
    if isinstance(value, int):
        return str(int(value))
    if value == 0:
        return "0"
    return f"{value:.6g}" if _SMALLEST <= abs(value) < _LARGEST else f"{value:.5e}"


def shape_text(shape: Iterable[int]) -> str:
    """Dimensions, such as `64x128`; `scalar` where there are none."""
    return "x".join(map(str, shape)) or "scalar"


def facts_line(facts: Iterable[tuple[str, float | None]]) -> str:
    """Facts by name, such as `std = 0.0312, kurtosis = 1.5`."""
    return ", ".join(f"{name} = {figure(value)}" for name, value in facts)


def row(*cells: str) -> str:
    """One row of a table."""
    return " | ".join(cells)
