"""JSON from outside, read strictly: the only place that parses JSON which somebody else wrote.

Python's `json.loads` takes duplicate keys (the last one wins), NaN, Infinity, 1e400 and lone surrogates, and raises
RecursionError on deep nesting. Each of those lets two readers of the same file see different things, so all are
refused. -0 is read as the float it is elsewhere, where Python makes it the integer 0.
"""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["JsonRefused", "loads"]


class JsonRefused(ValueError):
    """The text is not JSON, or is JSON that two readers could understand differently. The message says where."""


def loads(text: str, *, largest: int = 64 * 2**20) -> Any:
    """Parse `text`, at most `largest` characters of it. Raises `JsonRefused`, and nothing else."""
    if len(text) > largest:
        raise JsonRefused(f"{len(text):,} characters; at most {largest:,} are read")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_refuse_duplicate_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_bounded_int,
        )
    except json.JSONDecodeError as error:
        raise JsonRefused(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise JsonRefused("nested too deep") from None
    if not text.isascii() or "\\ud" in text.lower():  # one may stand there as itself or be written \ud800
        _refuse_lone_surrogates(value)
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonRefused("a string holds half of a surrogate pair, which is no character") from None
    except RecursionError:  # writing takes a little more of the stack than reading did
        raise JsonRefused("nested too deep") from None


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise JsonRefused(f"the key {key[:80]!r} stands twice in one object")
        found[key] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise JsonRefused(f"{name} is not JSON; write a finite number or null")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonRefused(f"{digits[:40]} is too large for a 64-bit float")
    return value


def _bounded_int(digits: str) -> int | float:
    if digits == "-0":
        return -0.0
    # No size, count or offset comes near 2^63; a longer run of digits is an attack on int() or a mistake.
    if len(digits) > 20:
        raise JsonRefused(f"an integer of {len(digits)} digits")
    value = int(digits)
    if not -(2**63) <= value < 2**63:
        raise JsonRefused(f"the integer {digits} does not fit in 64 bits")
    return value
