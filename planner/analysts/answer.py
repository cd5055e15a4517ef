"""From a model's text to modifications: one JSON object, read strictly, every problem found at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from planner import strict_json
from planner.analysts.aliases import Aliases, quoted
from planner.analysts.wire import unwired
from planner.operations import named_beside
from planner.plan import Modification, Problem, problems_of
from planner.records import Record

__all__ = ["Answer", "looks_like_json", "read_answer", "read_modifications", "sound_object"]

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_LARGEST = 2**20
_DEEPEST = 32


class _Document(Record):
    note: str = ""
    modifications: tuple[Modification, ...]


@dataclass(frozen=True)
class Answer:
    """What a model wrote, as far as it can be read."""

    note: str
    """About the plan as a whole."""
    modifications: tuple[Modification, ...]
    """Those that can be read; none is a good answer too."""
    problems: tuple[Problem, ...] = ()
    """Everything that is wrong; none means that the whole answer was read."""


def read_answer(text: str, aliases: Aliases | None = None) -> Answer:
    """The answer in `text`.

    The text is the JSON object itself, or holds exactly one fenced block, which is. Nothing is guessed beyond that: a
    second block, or JSON in the middle of a sentence, leaves it open which one was meant.
    """
    document = sound_object(text)
    if isinstance(document, Problem):
        return Answer("", (), (document,))
    items = document.get("modifications")
    if isinstance(items, list):
        document = document | {"modifications": [unwired(item, aliases) for item in items]}
    found = _read(_Document, document)
    if isinstance(found, _Document):
        note, readable, problems = found.note, list(found.modifications), []
    else:
        said = document.get("note")
        note = said if isinstance(said, str) else ""
        each = [_read(Modification, item) for item in items] if isinstance(items, list) else []
        readable = [one for one in each if isinstance(one, Modification)]
        problems = problems_of(found, document)
    outside = _outside(readable)
    at_fault = {problem.modification for problem in outside}
    return Answer(note, tuple(one for one in readable if one.id not in at_fault), (*problems, *outside))


def read_modifications(
    documents: Sequence[Any], aliases: Aliases | None = None
) -> tuple[Modification, ...] | list[Problem]:
    """Drafts, as documents or as their JSON texts; everything that is wrong with them otherwise."""
    sound: list[Any] = []
    for document in documents:
        found = sound_object(document) if isinstance(document, str) else document
        if isinstance(found, Problem):
            return [found]
        sound.append(unwired(found, aliases))
    whole = {"modifications": sound}
    read = _read(_Document, whole)
    if not isinstance(read, _Document):
        return problems_of(read, whole)
    return _outside(read.modifications) or read.modifications


def sound_object(text: str) -> dict[str, Any] | Problem:
    """The one JSON object that a text is, or that its one fenced block is; a problem that says why there is none."""
    fenced = _FENCED.findall(text)
    if len(fenced) > 1:
        return _problem(f"it holds {len(fenced)} fenced blocks", "answer with one JSON object")
    body = fenced[0] if fenced else text.strip()
    try:
        document = strict_json.loads(body, largest=_LARGEST)
    except strict_json.JsonRefused as error:
        return _problem(f"it is not sound JSON: {error}", "answer with one JSON object and nothing else")
    if not isinstance(document, dict):
        return _problem("it is not a JSON object", "answer with one JSON object")
    if _depth(document) > _DEEPEST:
        return _problem("it is nested too deep", f"no plan needs more than {_DEEPEST} levels")
    return document


def _outside(modifications: Iterable[Modification]) -> list[Problem]:
    """Files that a model names and that do not lie beside the plan: it has no business anywhere else."""
    return [
        Problem(
            modification=modification.id,
            code="outside-folder",
            message=f"it names {quoted(name)}, which is no file beside the plan",
            hint="use an operation that needs no file",
        )
        for modification in modifications
        for name in named_beside(modification.operation)
        if not _PLAIN_NAME.fullmatch(name)
    ]


def looks_like_json(text: str) -> bool:
    """Whether a text means to be an answer, and is no thinking aloud."""
    return text.lstrip().startswith("{") or bool(_FENCED.search(text))


def _read(record: Any, document: Any) -> Any:
    """The record, read as strictly as from a file, or the error that says why not."""
    try:
        return record.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        return error


def _depth(document: Any) -> int:
    deepest, level = 0, [document]
    while level and deepest <= _DEEPEST:
        deepest += 1
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
    return deepest


def _problem(message: str, hint: str) -> Problem:
    return Problem(modification=None, code="plan-invalid", message=message, hint=hint)
