"""Colour scales in equal steps of OKLab (Ottosson, 2020), so that equal steps of a value look equal.

One scale runs from the page's background towards the foreground through blue, teal and ochre, its lightness changing
all the way, so that it reads without hue; the other from blue over grey to orange, the pair that colour-blind people
tell apart, as light on the one side as on the other. Each exists for light and for dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

__all__ = ["STEPS", "diverging", "lightness", "scales_css", "sequential"]

STEPS = 33
_FINE = 1024

Lab = tuple[float, float, float]


def sequential(*, dark: bool) -> list[str]:
    """From the smallest value to the largest; the smallest is nearest to the background."""
    ends = (0.30, 0.92) if dark else (0.95, 0.28)
    hues = (282.0, 85.0) if dark else (100.0, 282.0)
    return _even(
        lambda at: _polar(_between(ends, at), 0.035 + 0.105 * math.sin(math.pi * (0.1 + 0.85 * at)), _between(hues, at))
    )


def diverging(*, dark: bool) -> list[str]:
    """From far below over as usual (the middle) to far above."""
    middle, end = (0.31, 0.80) if dark else (0.95, 0.47)

    def path(at: float) -> Lab:
        far = abs(2 * at - 1)
        return _polar(_between((middle, end), far), 0.005 + 0.135 * far, 255.0 if at < 0.5 else 52.0)

    return _even(path)


def scales_css() -> str:
    """A class for every step (s0 ..., d0 ...) and the two colour bars, for light and dark."""
    lines = []
    for letter, scale in (("s", sequential), ("d", diverging)):
        pairs = [f"light-dark({light},{dark})" for light, dark in zip(scale(dark=False), scale(dark=True), strict=True)]
        lines += [f".{letter}{step}{{--ink:{pair}}}" for step, pair in enumerate(pairs)]
        lines.append(f".bar-{letter}{{background:linear-gradient(90deg,{','.join(pairs)})}}")
    return "\n".join(lines)


def _between(ends: tuple[float, float], at: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * at


def _polar(light: float, chroma: float, hue: float) -> Lab:
    """The colour, with as much of its chroma as a screen can show."""
    angle = math.radians(hue)
    for _ in range(100):
        lab = (light, chroma * math.cos(angle), chroma * math.sin(angle))
        if all(-1e-6 <= part <= 1 + 1e-6 for part in _linear_rgb(lab)):
            return lab
        chroma *= 0.97
    return (light, 0.0, 0.0)


def _even(path: Callable[[float], Lab]) -> list[str]:
    """`STEPS` colours along the path, each as far from the next in OKLab."""
    points = [path(step / _FINE) for step in range(_FINE + 1)]
    walked = [0.0]
    for first, second in pairwise(points):
        walked.append(walked[-1] + math.dist(first, second))
    chosen, place = [], 0
    for step in range(STEPS):
        while place < _FINE and walked[place] < walked[-1] * step / (STEPS - 1) - 1e-12:
            place += 1
        chosen.append(_hex(points[place]))
    return chosen


def _linear_rgb(lab: Lab) -> Lab:
    light, a, b = lab
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _hex(lab: Lab) -> str:
    def coded(part: float) -> int:
        part = min(max(part, 0.0), 1.0)
        return round(255 * (12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055))

    return "#" + "".join(f"{coded(part):02x}" for part in _linear_rgb(lab))


def lightness(colour: str) -> float:
    """OKLab lightness of #rrggbb."""

    def plain(code: str) -> float:
        part = int(code, 16) / 255
        return float(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)

    red, green, blue = (plain(colour[at : at + 2]) for at in (1, 3, 5))
    long = 0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue
    medium = 0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue
    short = 0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue
    return 0.2104542553 * math.cbrt(long) + 0.7936177850 * math.cbrt(medium) - 0.0040720468 * math.cbrt(short)
