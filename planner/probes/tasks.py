"""What a loss is made of: documents, or questions with choices, cut into groups that a backward pass takes at a time.

A *group* is what standard errors and curvature rest on: one document or question, or several where there are more than
can be kept apart. Every loss here is a sum over sequences of  -coefficient · log p(sequence), so that its derivative by
the logits is known without building a graph over the vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3
from pydantic import Field, ValidationError

from planner import strict_json
from planner.errors import TextInvalid
from planner.inference import encode, parse_documents, read_text_file
from planner.records import Record

__all__ = ["Group", "Question", "Sequences", "Source", "load_questions", "load_source", "text_groups"]

Side = Literal[0, 1]


class Question(Record):
    """One multiple-choice question."""

    prompt: str
    """What stands before every choice."""
    choices: tuple[str, ...] = Field(min_length=2, max_length=64)
    """The continuations."""
    answer: int = Field(ge=0)
    """Which is right, counted from 0."""


@dataclass(frozen=True)
class Sequences:
    """Token ids that are scored together: a document, or all choices of one question."""

    ids: tuple[tuple[int, ...], ...]
    scored_from: tuple[int, ...]
    """The first position of each sequence that counts: 1 for a document; for a choice, where the choices part."""
    answer: int | None = None
    """For a question: which sequence is right."""

    @property
    def tokens(self) -> int:
        """Predicted tokens, all positions of all sequences."""
        return sum(len(ids) - 1 for ids in self.ids)

    @property
    def weight(self) -> int:
        """What the loss is a mean over: predicted tokens for a document, one for a question."""
        return self.tokens if self.answer is None else 1


@dataclass
class Group:
    """What one backward pass is about."""

    items: list[Sequences] = field(default_factory=list)
    side: Side = 0
    """1 for the text against, in a contrast."""

    @property
    def weight(self) -> int:
        """Tokens, or questions."""
        return sum(item.weight for item in self.items)

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return sum(item.tokens for item in self.items)


@dataclass(frozen=True)
class Source:
    """A file of documents, read once."""

    name: str
    path: Path
    digest: str
    documents: tuple[str, ...]


def load_source(path: Path) -> Source:
    """The documents of a file. Raises `FileUnreadable` or `TextInvalid`."""
    data = read_text_file(path)
    documents = parse_documents(data.decode("utf-8-sig"), path)
    return Source(str(path), path, f"blake3:{blake3(data).hexdigest()}", documents)


def load_questions(path: Path) -> tuple[str, tuple[Question, ...]]:
    """The digest of a JSONL file and its questions. Raises `FileUnreadable` or `TextInvalid`, naming lines."""
    data = read_text_file(path)
    found: list[Question] = []
    problems: list[str] = []
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            strict_json.loads(line)
            question = Question.model_validate_json(line, strict=True)
        except strict_json.JsonRefused as error:
            problems.append(f"line {number}: not JSON ({error})")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            problems.append(f"line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}")
        else:
            if question.answer < len(question.choices) and all(question.choices) and _differ(question.choices):
                found.append(question)
            else:
                problems.append(
                    f"line {number}: the answer is none of its choices, or a choice is empty or stands twice"
                )
    if problems or not found:
        shown = "; ".join(problems[:10]) or "it holds no question"
        raise TextInvalid(
            f"{path}: {shown}", hint='a question a line: {"prompt": "…", "choices": ["…", "…"], "answer": 0}'
        )
    return f"blake3:{blake3(data).hexdigest()}", tuple(found)


def _differ(choices: Sequence[str]) -> bool:
    return len(set(choices)) == len(choices)


def text_groups(
    documents: Sequence[str],
    tokenizer: Any,
    *,
    context: int | None,
    max_tokens: int | None,
    most: int | None,
    groups: int,
    seed: int,
    side: Side = 0,
) -> list[Group]:
    """At most `most` documents of a seeded shuffle, as at most `groups` groups of like numbers of documents.

    Documents that leave no token to predict are passed over. Raises `TextInvalid` where that leaves none.
    """
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a shuffle, no secret
    encoded = encode(tokenizer, [documents[place] for place in order[: most or None]], max_tokens, context)
    items = [Sequences((tuple(ids),), (1,)) for ids in encoded if len(ids) > 1]
    if not items:
        raise TextInvalid("no document has a token to predict", hint="use longer documents or a larger --max-tokens")
    return dealt(items, groups, side)


def question_groups(
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    context: int | None,
    most: int | None,
    groups: int,
    seed: int,
) -> list[Group]:
    """As `text_groups`, of questions. Of prompt and choice those tokens count that not all choices share.

    A tokenizer may join the end of a prompt to one choice and not to another; then the choices are compared from where
    they part, so that each has its whole probability.

    Raises `TextInvalid` for a question that does not fit into the model's context, or leaves nothing to predict.
    """
    order = list(range(len(questions)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a shuffle, no secret
    items = []
    for place in order[: most or None]:
        question = questions[place]
        prompt, *whole = encode(
            tokenizer, [question.prompt, *(question.prompt + choice for choice in question.choices)], None, None
        )
        if context is not None and max(map(len, whole)) > context:
            raise TextInvalid(
                f"question {place + 1} has more than the {context} tokens of the model's context",
                hint="shorten its prompt",
            )
        if min(map(len, whole)) < 2:
            raise TextInvalid(
                f"question {place + 1} has a choice without a token to predict",
                hint="give it a prompt, or longer choices",
            )
        start = min(_common(prompt, ids) for ids in whole)
        items.append(Sequences(tuple(map(tuple, whole)), (start,) * len(whole), question.answer))
    return dealt(items, groups, 0)


def _common(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens of a choice are its prompt's; at least the first, and never all."""
    shared = 0
    while shared < min(len(prompt), len(whole) - 1) and prompt[shared] == whole[shared]:
        shared += 1
    return max(shared, 1)


def dealt(items: Sequence[Sequences], groups: int, side: Side) -> list[Group]:
    """Items dealt out to at most `groups` groups in turn."""
    made = [Group(side=side) for _ in range(min(groups, len(items)))]
    for place, item in enumerate(items):
        made[place % len(made)].items.append(item)
    return made
