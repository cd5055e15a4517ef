"""Tokens and what units mean in tokens, in quoted plain characters: a vocabulary is a stranger's text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from planner.analysts.aliases import quoted
from planner.analysts.tools.figures import figure
from planner.words import TokenWeight, UnitWords

__all__ = ["escaped", "said_of", "token_text"]

_LONGEST = 24


def token_text(text: str | None, number: int) -> str:
    """A token: its quoted text, with its number where that is not all of it; the number alone where it has none."""
    if text is None:
        return f"#{number}"
    shown = escaped(text)
    return shown if json.loads(shown) == text else f"{shown} (#{number})"


def escaped(text: str, *, longest: int = _LONGEST) -> str:
    """A text as a JSON string in ASCII: letters of any script as escapes; what steers or is not seen is left out."""
    plain = "".join(c for c in text[: 16 * longest] if c.isprintable())
    return json.dumps(plain if len(plain) <= longest else plain[: longest - 3] + "...")


def said_of(words: UnitWords, *, most: int, values: bool = False) -> str:
    """What a unit promotes, suppresses and reads, at most so many tokens a list, with the numbers if `values`."""

    def listed(tokens: Sequence[TokenWeight]) -> str:
        return " ".join(
            token_text(token.text, token.id) + (f" {figure(token.value)}" if values else "") for token in tokens[:most]
        )

    lists = {
        "promotes": words.promotes,
        "suppresses": words.suppresses,
        "reads": words.reads_most,
        "reads least": words.reads_least if words.kind == "head" else (),
        "is nearest to": words.neighbours,
    }
    said = [f"{verb} {listed(tokens)}" for verb, tokens in lists.items() if tokens]
    if words.share is not None:
        said.append(f"by the direction that holds {figure(words.share)} of its OV matrix")
    if words.note is not None:
        said.append(f"note {quoted(words.note, longest=200)}")
    return "; ".join(said) or "nothing is known"
