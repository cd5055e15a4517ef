"""Names that a wrong name may have meant: shown to people and analysts, never put in its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache

__all__ = ["nearest", "nearest_hint"]

_NUMBER = re.compile(r"\d+")
_ANY_NUMBER = re.compile(r"\d+|\*+|\?|\[[^\]]*\]")  # what may stand for a number in a pattern
_LONGEST = 256
_MOST_SHAPES = 512
_MOST_COMPARED = 32
_CUTOFF = 0.6


def nearest(wanted: str, there: Sequence[str], *, most: int = 3) -> tuple[str, ...]:
    """At most `most` of the names `there`, the likeliest first; none if nothing is like it.

    Names of tensors differ in their numbers, and otherwise there are few: 18,000 names of a mixture of experts have
    15 shapes. So the shapes are compared, without what people leave out or get wrong (`model.`, `.weight`,
    underscores, case), and the numbers are then looked for in the best shapes. The time is in proportion to the names,
    and to at most 32 comparisons of 256 characters.
    """
    pattern = _ANY_NUMBER.sub("#", wanted[:_LONGEST])
    numbers = [_value(found) for found in _ANY_NUMBER.findall(wanted[:_LONGEST])]
    shapes = _by_shape(tuple(there))
    plain = _plain(pattern)
    likely = sorted(shapes, key=lambda shape: abs(len(shape) - len(plain)))[:_MOST_SHAPES]
    matcher = SequenceMatcher(None, "", plain, autojunk=False)
    scored: list[tuple[float, str]] = []
    for quick, shape in sorted(((_bound(matcher, shape), shape) for shape in likely), reverse=True)[:_MOST_COMPARED]:
        matcher.set_seq1(shape)
        if quick >= _CUTOFF and (score := matcher.ratio()) >= _CUTOFF:
            scored.append((score, shape))
    scored.sort(key=lambda found: (-found[0], found[1]))
    if scored and scored[0][0] == 1:
        scored = scored[:1]  # the same but for how it is spelled: no guess beside it
    found = [min(shapes[shape], key=lambda name: _distance(numbers, name)) for _, shape in scored[:most]]
    return tuple(dict.fromkeys(found))


def nearest_hint(wanted: str, there: Sequence[str]) -> str:
    """A hint that names what is near, or what there is."""
    if close := nearest(wanted, there):
        return "nearest: " + ", ".join(close)
    return f"there are {len(there)}, such as {', '.join(there[:3])}" if there else "there are none"


@lru_cache(maxsize=4)
def _by_shape(names: tuple[str, ...]) -> dict[str, list[str]]:
    """The names by what is left of them without numbers and without what `_plain` leaves out."""
    shapes: dict[str, list[str]] = {}
    for name in names:
        shapes.setdefault(_plain(_NUMBER.sub("#", name[:_LONGEST])), []).append(name)
    return shapes


def _plain(name: str) -> str:
    name = name.lower()
    while name.startswith(("model.", "transformer.", "module.")):
        name = name.partition(".")[2]
    return name.removesuffix(".weight").replace("_", "").replace("-", "")


def _value(digits: str) -> int | None:
    """The number; None for what stands for any."""
    return int(digits) if digits.isdecimal() and len(digits) <= 9 else None


def _bound(matcher: SequenceMatcher[str], shape: str) -> float:
    """An upper bound of the likeness, from the letters alone."""
    matcher.set_seq1(shape)
    return matcher.quick_ratio()


def _distance(numbers: Sequence[int | None], name: str) -> tuple[object, ...]:
    mine = [_value(found) for found in _NUMBER.findall(name[:_LONGEST])]
    steps = [0 if a is None or b is None else abs(a - b) for a, b in zip(numbers, mine, strict=False)]
    return (steps, not name.endswith(".weight"))  # of two spellings, `.weight` is what people leave out
