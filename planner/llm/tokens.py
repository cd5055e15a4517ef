"""How many tokens a text is to a language model: an estimate, without a vocabulary and without network.

Providers cut text into tokens by vocabularies of their own, most of which nobody else has. What can be known is that
byte-pair encodings for English and code agree on the rough shape: a word or its tail, three digits, a run of
punctuation, a line break. So such pieces are counted, each with a weight.

The weights come from a linear programme: over this repository's texts (prose, JSON, schemas, code, lists of tensor
names, rows of numbers in scientific notation) the estimate is never below the larger of two real counts, those of
cl100k_base (OpenAI) and of the vocabulary that Anthropic published, and at most 1.35 times that. Digests and base64 are
covered as well. Other scripts than Latin are overestimated, two to four times; random letters and random punctuation
may be underestimated by a quarter.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["estimated_tokens"]

_OTHER, _LOWER, _UPPER, _DIGIT, _MARK, _BREAK = range(6)


def _kinds() -> NDArray[np.uint8]:
    kinds = np.full(256, _OTHER, dtype=np.uint8)
    for code in range(33, 127):
        character = chr(code)
        kinds[code] = (
            _LOWER
            if character.islower()
            else _UPPER
            if character.isupper()
            else _DIGIT
            if character.isdigit()
            else _MARK
        )
    kinds[[10, 13]] = _BREAK
    return kinds


_KIND = _kinds()
"""Kind of character by byte; what is not ASCII, and blanks, are `_OTHER`."""
_CONSONANT = np.isin(np.arange(256), list(b"bcdfghjklmnpqrstvwxz"))

_WORD = 1.06
"""A word: a letter that no letter stands before, or a capital."""
_TAIL = 0.62
"""Each letter of a word beyond the eighth."""
_CLUSTER = 1.94
"""Four consonants in a row: hardly a word, and cut into small pieces."""
_DIGITS = 1.16
"""Three digits, or the rest of a number."""
_NUMBER = 0.76
"""A number, beside its digits: some vocabularies cut it in other places."""
_MARKS = 0.79
"""A run of punctuation."""
_MORE_MARKS = 0.5
"""Each mark of such a run beyond the second."""
_BREAKS = 1.98
"""A run of line breaks, with the blanks that begin the next line."""
_BEYOND_ASCII = 1.68
"""Each byte of a character in UTF-8 but the first."""


def estimated_tokens(text: str) -> int:
    """About how many tokens `text` is; rather too many than too few. 100 kB take a few milliseconds.

    The estimate of a text is at most the sum of those of its lines, if each is taken with its line break.
    """
    data = np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8)
    if not data.size:
        return 0
    kind = _KIND[data]
    place = _place_in_run(kind)
    lower, digit, mark = kind == _LOWER, kind == _DIGIT, kind == _MARK
    starts = place == 0
    # A capital begins a word, and so does a small letter after anything but a letter.
    after_capital = np.zeros(data.size, dtype=bool)
    after_capital[1:] = kind[:-1] == _UPPER
    words = np.count_nonzero(kind == _UPPER) + np.count_nonzero(lower & starts & ~after_capital)
    consonant = _CONSONANT[data]
    clusters = np.count_nonzero(consonant & (_place_in_run(consonant.view(np.uint8)) % 4 == 3))
    weighted = (
        _WORD * words
        + _TAIL * np.count_nonzero(lower & (place >= 7))
        + _CLUSTER * clusters
        + _DIGITS * np.count_nonzero(digit & (place % 3 == 0))
        + _NUMBER * np.count_nonzero(digit & starts)
        + _MARKS * np.count_nonzero(mark & starts)
        + _MORE_MARKS * np.count_nonzero(mark & (place >= 2))
        + _BREAKS * np.count_nonzero((kind == _BREAK) & starts)
        + _BEYOND_ASCII * np.count_nonzero((data & 0xC0) == 0x80)
    )
    return math.ceil(weighted)


def _place_in_run(kind: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many equal neighbours stand directly before each element."""
    index = np.arange(kind.size)
    starts = np.ones(kind.size, dtype=bool)
    starts[1:] = kind[1:] != kind[:-1]
    return index - np.maximum.accumulate(np.where(starts, index, 0))
