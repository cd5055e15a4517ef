"""From a model's text to modifications: one JSON object, read strictly, every problem found at once."""

from __future__ import annotations

import re

from pydantic import ValidationError

from planner import strict_json
from planner.plan import Modification, Problem, problems_of
from planner.records import Record

__all__ = ["Answer", "read_answer"]

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL)
_LARGEST = 2**20


class Answer(Record):
    """What a model is asked to write."""

    note: str = ""
    """About the plan as a whole."""
    modifications: tuple[Modification, ...]
    """The modifications; none is a good answer too."""


def read_answer(text: str) -> Answer | list[Problem]:
    """The answer in `text`, or everything that is wrong with it.

    The text is the JSON object itself, or holds exactly one fenced block, which is. Nothing is guessed beyond that: a
    second block, or JSON in the middle of a sentence, leaves it open which one was meant.
    """
    fenced = _FENCED.findall(text)
    if len(fenced) > 1:
        return [_problem(f"it holds {len(fenced)} fenced blocks", "answer with one JSON object")]
    body = fenced[0] if fenced else text.strip()
    try:
        document = strict_json.loads(body, largest=_LARGEST)
    except strict_json.JsonRefused as error:
        return [_problem(f"it is not sound JSON: {error}", "answer with one JSON object and nothing else")]
    if not isinstance(document, dict):
        return [_problem("it is not a JSON object", "answer with one JSON object")]
    try:
        return Answer.model_validate_json(body, strict=True)
    except ValidationError as error:
        return problems_of(error, document)


def _problem(message: str, hint: str) -> Problem:
    return Problem(modification=None, code="plan-invalid", message=message, hint=hint)
