"""JSON from outside, read strictly: the only place that parses JSON which somebody else wrote.

Python's `json.loads` takes duplicate keys (the last one wins), NaN, Infinity, 1e400 and lone surrogates, and raises
RecursionError on deep nesting. Each of those lets two readers of the same file see different things, so all are
refused. -0 is read as the float it is elsewhere, where Python makes it the integer 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["JsonRefused", "loads"]


class JsonRefused(ValueError):
    """The text is not JSON, or is JSON that two readers could understand differently. The message says where."""


_HALF_A_PAIR = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


def loads(
    text: str,
    *,
    largest: int = 64 * 2**20,
    most: Mapping[str, int] | None = None,
    reduce: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Parse `text`, at most `largest` characters of it. Raises `JsonRefused`, and nothing else.

    `most` says how often a character may stand in the text, in strings or outside: counting commas, colons and
    brackets costs nothing, and bounds the values before the first of them is made. `reduce` is given every object as
    soon as it is read, the innermost first, and returns what to keep in its place.
    """
    if len(text) > largest:
        raise JsonRefused(f"{len(text):,} characters; at most {largest:,} are read")
    for mark, limit in (most or {}).items():
        if (count := text.count(mark)) > limit:
            raise JsonRefused(f"the character {mark} stands in it {count:,} times; at most {limit:,} are read")

    def finished(pairs: list[tuple[str, Any]]) -> Any:
        found = _refuse_duplicate_keys(pairs)
        return reduce(found) if reduce else found

    try:
        value = json.loads(
            text,
            object_pairs_hook=finished,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_bounded_int,
        )
    except json.JSONDecodeError as error:
        raise JsonRefused(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise JsonRefused("nested too deep") from None
    _refuse_lone_surrogates(text)
    return value


def _refuse_lone_surrogates(text: str) -> None:
    """`text` is sound JSON. Half a pair stands there as itself, or written \\ud800 without the other half."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise JsonRefused(_HALF) from None
    if "\\u" in text and _HALF_A_PAIR.search(text.replace("\\\\", "--")):  # without what only looks like an escape
        raise JsonRefused(_HALF)


_HALF = "a string holds half of a surrogate pair, which is no character"


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonRefused(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> Any:
    raise JsonRefused(f"{name} is not JSON; write a finite number or null")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonRefused(f"{digits[:40]} is too large for a 64-bit float")
    return value


def _bounded_int(digits: str) -> int | float:
    if len(digits) < 19 and digits[0] != "-":  # nearly all
        return int(digits)
    if digits == "-0":
        return -0.0
    # No size, count or offset comes near 2^63; a longer run of digits is an attack on int() or a mistake.
    if len(digits) > 20:
        raise JsonRefused(f"an integer of {len(digits)} digits")
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise JsonRefused(f"the integer {digits} does not fit in 64 bits")
    return value
