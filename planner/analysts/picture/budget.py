"""Which lines of a picture are shown: the most informative ones that fit, in the order of a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planner.llm.tokens import estimated_tokens

__all__ = ["Line", "Picture", "Priority", "Section", "fitted"]

_SERIES = "series of "
"""Kinds that begin so are told together where none of them is shown."""
Priority = tuple[float, ...]
"""What is shown first: the smallest. The first number is the tier, from 0 (what the model is) to 5 (the rest of long
lists); the others tell lines of a tier apart."""


@dataclass(frozen=True)
class Line:
    """One line that is shown whole or not at all."""

    text: str
    priority: Priority
    kind: str
    """What it is one of, in the plural: `findings`; counted where it is left out."""


@dataclass(frozen=True)
class Section:
    """Lines under a heading; the heading is shown with the first of them."""

    heading: str
    lines: Sequence[Line]
    beyond: Mapping[str, int] = field(default_factory=dict)
    """How many more of each kind there are, for which no line was made: there are too many."""


@dataclass(frozen=True)
class Picture:
    """What a model reads about a checkpoint."""

    text: str
    """The text; every line but the first of a section can stand alone."""
    tokens: int
    """How many tokens it is, by `estimated_tokens`."""
    left_out: tuple[str, ...]
    """What did not fit, such as `12 of 40 findings` or `all series of mean, zeros`."""


def fitted(sections: Sequence[Section], tokens: int, *, tools: bool = True) -> Picture:
    """The lines that fit into `tokens`: no line is shown in the place of one with a smaller priority.

    `tools` says whether what is left out can be asked for.

    The sum of the lines' estimates bounds that of the text, so that the text is estimated once.
    """
    order = sorted(
        (
            (line.priority, place, number)
            for place, section in enumerate(sections)
            for number, line in enumerate(section.lines)
        )
    )
    shown: list[tuple[int, int]] = []
    costs: list[int] = []
    opened: set[int] = set()
    spent = 0
    for _, place, number in order:
        cost = _cost(sections[place].lines[number].text)
        cost += 0 if place in opened else _cost(_heading(sections[place]))
        if spent + cost > tokens:
            break
        opened.add(place)
        shown.append((place, number))
        costs.append(cost)
        spent += cost
    left_out = _left_out(sections, shown)
    # The line that says what is left out needs room as well, and grows with every line that makes it.
    while left_out and shown and spent + _cost(_told(left_out, tokens, tools)) > tokens:
        shown.pop()
        spent -= costs.pop()
        left_out = _left_out(sections, shown)
    text = _written(sections, shown)
    if left_out and spent + _cost(_told(left_out, tokens, tools)) <= tokens:
        text += _told(left_out, tokens, tools)
    return Picture(text=text, tokens=estimated_tokens(text), left_out=left_out)


def _cost(text: str) -> int:
    return estimated_tokens(text + "\n")


def _heading(section: Section) -> str:
    return f"\n## {section.heading}"


def _told(left_out: tuple[str, ...], tokens: int, tools: bool) -> str:
    ask = "; ask with the tools" if tools else ""
    return f"\nLeft out to fit {tokens} tokens: {'; '.join(left_out)}{ask}."


def _written(sections: Sequence[Section], shown: Sequence[tuple[int, int]]) -> str:
    chosen = set(shown)
    parts = []
    for place, section in enumerate(sections):
        lines = [line.text for number, line in enumerate(section.lines) if (place, number) in chosen]
        parts += [_heading(section), *lines] if lines else []
    return "\n".join(parts).lstrip("\n") + "\n" if parts else ""


def _left_out(sections: Sequence[Section], shown: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    there: Counter[str] = Counter()
    for section in sections:
        there.update(line.kind for line in section.lines)
        there.update(section.beyond)
    seen = Counter(sections[place].lines[number].kind for place, number in shown)
    parts = [f"{count - seen[kind]} of {count} {kind}" for kind, count in there.items() if 0 < seen[kind] < count]
    whole = [kind for kind, count in there.items() if count and not seen[kind]]
    told = [f"all {kind} ({there[kind]})" for kind in whole if not kind.startswith(_SERIES)]
    if unseen := [kind.removeprefix(_SERIES) for kind in whole if kind.startswith(_SERIES)]:
        told.append(f"all {_SERIES}{', '.join(unseen)}")
    return (*parts, *told)
