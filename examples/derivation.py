"""An engine for probabilistic grammars whose documents have an exactly known probability.

Why it exists: a model trained on text whose generator is known can be compared with the best
loss that any model could reach, because the generator states the probability of each document.

How the probability stays exact.  Every random choice is written out at the very place where it is
made, and the alternatives of one choice are *prefix-free*: none begins with another.  Reading from
the left, a text therefore allows at most one choice at every step, so a document has exactly one
derivation, and the product of its choice probabilities is the probability of the text itself, not
a bound.  ``Grammar.nats`` uses this to score any text by replaying it; the condition is checked at
every choice that is drawn or replayed (``_require_prefix_free``).  A document's end is also settled
by its text: a plan always finishes with a closing sentence or record, so an end token costs
nothing.

A rule (``Template``) is a sentence with slots in braces:

* ``{hero}`` repeats what was bound to ``hero`` earlier (or derived from it, such as pronouns);
* ``{TABLE}`` draws from a table; ``{hero=TABLE}`` draws and binds;
* ``{TABLE|place}`` draws from the table that belongs to the bound place;
* ``{TABLE-hero}`` leaves the bound hero out, if there is one, and renormalises.

Pure standard library.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise
from typing import Protocol

Table = Mapping[str, float]


class GrammarError(ValueError):
    """The rules are ill-formed, or a text cannot be derived from them."""


class Source(Protocol):
    """Where decisions come from: a random generator, a given text, or a test's script."""

    def choose(self, options: Sequence[str], weights: Sequence[float], written: int) -> int:
        """Return the index of one option; ``written`` is the number of characters so far."""
        ...


class RandomSource:
    """Decide at random, in proportion to the weights."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, options: Sequence[str], weights: Sequence[float], written: int) -> int:
        del options, written  # the weights say it all
        # One call of random() per choice: unlike random.choices(), its meaning for a seed is
        # promised not to change between Python versions.
        mark = self._rng.random() * sum(weights)
        for index, weight in enumerate(weights):
            mark -= weight
            if mark < 0.0:
                return index
        return len(weights) - 1


class ReplaySource:
    """Decide as a given text must have been decided; at most one option can fit."""

    def __init__(self, text: str) -> None:
        self._text = text

    def choose(self, options: Sequence[str], weights: Sequence[float], written: int) -> int:
        del weights  # a text of small probability is read like any other
        for index, option in enumerate(options):
            if self._text.startswith(option, written):
                return index
        raise GrammarError(f"no rule gives what stands at character {written}")


@dataclass(frozen=True)
class Template:
    """One way to write a sentence or record; ``then`` names the plan that follows, if any."""

    text: str
    then: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Stage:
    """A position in a plan: its templates, and the probability that it is written at all."""

    templates: tuple[Template, ...]
    prob: float = 1.0


@dataclass(frozen=True)
class Document:
    """A derived text, its exact negative log-probability in nats, and what was bound."""

    text: str
    nats: float
    choices: int
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Slot:
    bind: str | None
    table: str
    given: str | None
    without: str | None


_SLOT = re.compile(r"\{(?:(\w+)=)?([A-Z][A-Z_]+)(?:\|(\w+))?(?:-(\w+))?\}|\{(\w+)\}")


@cache
def _parse(template: str) -> tuple[str | tuple[str] | _Slot, ...]:
    """Split a template into literals (str), references (1-tuples) and draws (_Slot)."""
    parts: list[str | tuple[str] | _Slot] = []
    last = 0
    for match in _SLOT.finditer(template):
        if match.start() > last:
            parts.append(template[last : match.start()])
        bind, table, given, without, reference = match.groups()
        parts.append((reference,) if reference else _Slot(bind, table, given, without))
        last = match.end()
    if last < len(template):
        parts.append(template[last:])
    return tuple(parts)


@lru_cache(maxsize=1 << 16)
def _require_prefix_free(options: tuple[str, ...]) -> None:
    """Raise unless no option begins with another (sorted, it is enough to look at neighbours)."""
    ordered = sorted(options)
    for left, right in pairwise(ordered):
        if right.startswith(left):
            raise GrammarError(f"{left!r} begins {right!r}: the derivation would be ambiguous")


class _Writer:
    """The state of one derivation: text so far, bindings, and the cost of the choices made."""

    def __init__(self, grammar: Grammar, source: Source) -> None:
        self._grammar = grammar
        self._source = source
        self._pieces: list[str] = []
        self._length = 0
        self._facts: dict[str, str] = {}
        self._nats = 0.0
        self._choices = 0

    def document(self) -> Document:
        plan, position = self._grammar.plans[self._grammar.start], 0
        while position < len(plan):
            template, position = self._next_template(plan, position)
            self._render(template.text)
            if template.then is not None:
                plan, position = self._grammar.plans[template.then], 0
        return Document("".join(self._pieces), self._nats, self._choices, dict(self._facts))

    def _next_template(self, plan: Sequence[Stage], position: int) -> tuple[Template, int]:
        """Choose among all templates that may come next, skipped optional stages included.

        Whether a stage is skipped shows only in what is written instead, so both are decided in
        one choice; a separate coin would break the rule that choices are written out at once.
        """
        found: list[tuple[Template, int]] = []
        weights: list[float] = []
        reach = 1.0
        for index in range(position, len(plan)):
            stage = plan[index]
            total = sum(template.weight for template in stage.templates)
            for template in stage.templates:
                found.append((template, index + 1))
                weights.append(reach * stage.prob * template.weight / total)
            reach *= 1.0 - stage.prob
            if reach <= 0.0:
                break
        else:
            raise GrammarError("the last stage of a plan must not be optional")
        return found[self._choose([self._head(t.text) for t, _ in found], weights)]

    def _head(self, template: str) -> str:
        """Return the text up to the first draw: what tells this template from its rivals."""
        head = ""
        for part in _parse(template):
            if isinstance(part, _Slot):
                break
            head += part if isinstance(part, str) else self._facts[part[0]]
        return head

    def _choose(self, options: Sequence[str], weights: Sequence[float]) -> int:
        if len(options) == 1:
            return 0
        _require_prefix_free(tuple(options))
        index = self._source.choose(options, weights, self._length)
        self._nats -= math.log(weights[index] / sum(weights))
        self._choices += 1
        return index

    def _render(self, template: str) -> None:
        for part in _parse(template):
            if isinstance(part, str):
                self._write(part)
            elif isinstance(part, _Slot):
                self._draw(part)
            else:
                self._write(self._facts[part[0]])

    def _draw(self, slot: _Slot) -> None:
        name = slot.table if slot.given is None else f"{slot.table}|{self._facts[slot.given]}"
        barred = self._facts.get(slot.without) if slot.without else None
        options = {k: w for k, w in self._grammar.tables[name].items() if k != barred}
        words = list(options)
        word = words[self._choose(words, list(options.values()))]
        if slot.bind is not None:
            self._facts[slot.bind] = word
            self._facts.update(self._grammar.derived.get(f"{slot.bind}={word}", {}))
        self._write(word)

    def _write(self, text: str) -> None:
        self._pieces.append(text)
        self._length += len(text)


@dataclass(frozen=True)
class Grammar:
    """Tables of words, plans of stages, and facts that follow from a binding (``role=girl``)."""

    tables: Mapping[str, Table]
    plans: Mapping[str, tuple[Stage, ...]]
    start: str
    derived: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def derive(self, source: Source) -> Document:
        """Write one document with the decisions of ``source``."""
        return _Writer(self, source).document()

    def draw(self, rng: random.Random) -> Document:
        """Draw one document at random."""
        return self.derive(RandomSource(rng))

    def nats(self, text: str) -> float:
        """Return -log p(text) under the grammar; raise ``GrammarError`` where p is zero."""
        document = self.derive(ReplaySource(text))
        if document.text != text:
            raise GrammarError("the text departs from the grammar")
        return document.nats
