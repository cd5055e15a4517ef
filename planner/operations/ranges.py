"""Lists of numbers the way people write them: `0-3,7`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["MOST_NUMBERS", "NumberList", "numbers_in"]

MOST_NUMBERS = 100_000
"""How many numbers a list may stand for: 13 characters could otherwise ask for more than memory holds."""

_PART = re.compile(r"(\d+)(?:-(\d+))?")


def numbers_in(text: str) -> list[int]:
    """`10-12,20` to [10, 11, 12, 20], in the order of the text. Raises ValueError."""
    numbers: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a list of numbers and ranges such as 10-27 or 0,2,5-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"the range {part.strip()} runs backwards")
        if last - first + len(numbers) >= MOST_NUMBERS:
            raise ValueError(f"the range {part.strip()} is too long")
        numbers.extend(range(first, last + 1))
    return numbers


def _readable(text: str) -> str:
    numbers_in(text)
    return text


NumberList = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_readable)]
"""A text that `numbers_in` can read."""
