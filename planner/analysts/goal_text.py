"""The texts of an evidence file, read again: the same documents in the same groups, or nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from planner.errors import EvidenceUnusable
from planner.evidence import EvidenceFile, Measured, TextUsed
from planner.probes.tasks import Group, Source, dealt, load_questions, load_source, question_groups, text_groups

__all__ = ["documents_of", "goal_groups"]

_AGAIN = "put the text back where it was, or measure anew: planner probe"


def goal_groups(
    evidence: EvidenceFile, measured: Measured, path: Path, tokenizer: Any, context: int | None
) -> list[Group]:
    """The groups that the evidence in the file `path` was measured on, those of its goal, in its order.

    A text is looked for by the name that it was given, then beside the evidence. Raises `EvidenceUnusable` where it is
    not there, or is another text by now.
    """
    found: list[Group] = []
    for text in evidence.texts:
        if text.role == "drift":
            continue
        side: Literal[0, 1] = 1 if text.role == "against" else 0
        if text.role == "choices":
            place = _place_of(text, path)
            digest, questions = load_questions(place)
            _require_same(text, digest)
            count, seed = len(questions), evidence.seed
            made = question_groups(questions, tokenizer, context=context, most=None, groups=count, seed=seed)
        else:
            documents = _source(text, path).documents
            made = text_groups(
                documents,
                tokenizer,
                context=context,
                max_tokens=evidence.max_tokens,
                most=None,
                groups=len(documents),
                seed=evidence.seed,
                side=side,
            )
        # One item a group so far, in the order of the shuffle, of which the first were used.
        items = [item for group in made for item in group.items][: text.documents]
        found += dealt(items, int((measured.goal.side == side).sum()), side)
    if [float(group.weight) for group in found] != list(measured.goal.weights):
        raise EvidenceUnusable(
            "the texts of the evidence are not cut into the tokens that it was measured on",
            hint="the tokenizer's files changed; measure anew: planner probe",
        )
    return found


def documents_of(evidence: EvidenceFile, path: Path) -> frozenset[str]:
    """Every document of the texts that the evidence's goal was measured on; of questions none."""
    used = [text for text in evidence.texts if text.role in ("goal", "against")]
    return frozenset(document for text in used for document in _source(text, path).documents)


def _source(text: TextUsed, path: Path) -> Source:
    source = load_source(_place_of(text, path))
    _require_same(text, source.digest)
    return source


def _place_of(text: TextUsed, path: Path) -> Path:
    named = Path(text.file)
    for place in (named, path.parent / named, path.parent / named.name):
        if place.is_file():
            return place
    raise EvidenceUnusable(f"{text.file}, which {path} was measured on, is not there", hint=_AGAIN)


def _require_same(text: TextUsed, digest: str) -> None:
    if digest != text.digest:
        raise EvidenceUnusable(f"{text.file} is not the text any longer that the evidence was measured on", hint=_AGAIN)
