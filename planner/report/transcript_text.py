"""A stranger's text of any length as a transcript's page shows it: whole, harmless, and folded where it is long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from planner import strict_json
from planner.plain_text import plain

__all__ = ["Block", "block", "counted", "harmless", "json_block", "laid_out", "line"]

_FOLDED_CHARACTERS = 800
_FOLDED_LINES = 14
_LONGEST_LINE = 200
_BEGINNING = 90
_LARGEST_JSON = 2**22
_FEW = 16
_DEEPEST = 12
"""Levels that get lines of their own: deeper nesting would cost its depth in spaces on each of its lines."""
_WIDTH = 96
_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n[ \t]*```\s*", re.DOTALL)
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


@dataclass(frozen=True)
class Block:
    """A text of any number of lines, as it came; the page makes it harmless when it prints it."""

    text: str
    """All of it."""
    length: str
    """How long it is, in words; of JSON that was laid out anew, as it came."""
    folded: bool
    """Whether it is shown only when asked for."""
    beginning: str
    """Its first words, on one line; none of JSON, which begins like any other."""


def block(text: str, *, folded: bool | None = None) -> Block:
    """The text as a block, folded where it is long unless `folded` says otherwise."""
    lines = text.count("\n") + 1
    long = len(text) > _FOLDED_CHARACTERS or lines > _FOLDED_LINES
    size = counted(len(text), "character") + (f", {counted(lines, 'line')}" if lines > 1 else "")
    first = " ".join(text[: 4 * _BEGINNING].split())
    beginning = first if len(first) <= _BEGINNING else first[:_BEGINNING] + " ..."
    return Block(text, size, long if folded is None else folded, "" if first[:1] in ("{", "[") else beginning)


def json_block(text: str, *, folded: bool | None = None) -> Block:
    """The text laid out as JSON where it is JSON, or one fenced block that is; any other text as it is."""
    made = block(text, folded=folded)
    fenced = _FENCED.fullmatch(text)
    found = laid_out(fenced[1] if fenced else text)
    return made if found is None else Block(found, made.length, made.folded, made.beginning)


def line(text: str, *, longest: int = _LONGEST_LINE) -> str:
    """The text on one line; its beginning and its length, where it is longer than `longest` characters."""
    return plain(text) if len(text) <= longest else f"{plain(text[:longest])}... ({counted(len(text), 'character')})"


def counted(count: int, what: str) -> str:
    """1 line, 2,000 lines."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def harmless(text: str) -> str:
    """The text without any control or direction-changing character but line feeds; the others become escapes."""
    strange = {character for character in set(text) if not character.isprintable()} - {"\n"}
    if len(strange) > _FEW:
        return text.translate({ord(character): plain(character) for character in strange})
    for character in strange:  # ten times as fast, where they are few
        text = text.replace(character, plain(character))
    return text


def laid_out(text: str) -> str | None:
    """A JSON object or list with a line for each item; None where the text is none, or is not sound.

    Only the white space changes: numbers keep their digits, strings their escapes. What fits a line stays on it.
    """
    if len(text) > _LARGEST_JSON or not text.lstrip().startswith(("{", "[")):
        return None
    try:
        strict_json.loads(text, largest=_LARGEST_JSON)
    except strict_json.JsonRefused:
        return None
    marks = _MARK.findall(text)
    short = _short(marks)
    written: list[str] = []
    depth = short_until = 0
    for place, mark in enumerate(marks):
        if mark in "{[":
            depth += 1
            short_until = max(short_until, short.get(place, -1) + 1)
        on_one_line = place < short_until or depth > _DEEPEST
        if mark in "}]":
            depth -= 1
        new_line = "" if on_one_line else "\n" + "  " * depth
        if mark in "{[":
            written.append(mark + new_line)
        elif mark in "}]":
            written.append(new_line + mark)
        elif mark == ",":
            written.append("," + (new_line or " "))
        else:
            written.append(": " if mark == ":" else mark)
    return "".join(written)


def _short(marks: Sequence[str]) -> dict[int, int]:
    """Place to place: where a list or object that fits a line begins and ends."""
    found: dict[int, int] = {}
    open_: list[tuple[int, int]] = []
    width = 0
    for place, mark in enumerate(marks):
        if mark in "{[":
            open_.append((place, width))
        width += len(mark) + (mark in ",:")
        if mark in "}]":
            began, before = open_.pop()
            if width - before <= _WIDTH:
                found[began] = place
    return found
