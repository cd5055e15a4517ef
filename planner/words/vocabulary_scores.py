"""Which tokens of a vocabulary score highest and lowest, in one pass over the head or the embedding.

Scores of a whole vocabulary for many units would not fit in memory; a few of each end are kept while the pass goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.words.direct_paths import Step
from planner.words.stored_matrices import Floats, Indices, StoredMatrices

__all__ = ["GATES", "Ends", "Question", "answers", "logits"]


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))


GATES: dict[str, Callable[[Floats], Floats]] = {
    "silu": lambda x: x * _sigmoid(x),
    # Tanh form (Hendrycks and Gimpel 2016); the other forms that go by the name differ from it by at most 0.02.
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}
"""The activations of gates that are computed here, by the names that the map gives them."""


@dataclass(frozen=True, eq=False)
class Ends:
    """The tokens with the highest and those with the lowest of one unit's scores, the outermost first."""

    highest: tuple[tuple[int, float], ...]
    """(token, score); equal scores in the order of the tokens."""
    lowest: tuple[tuple[int, float], ...]

    def turned(self) -> Ends:
        """The ends of the scores times -1."""
        return Ends(
            tuple((token, -score) for token, score in self.lowest),
            tuple((token, -score) for token, score in self.highest),
        )


@dataclass(frozen=True, eq=False)
class Question:
    """A score that every token gets from its row of the embedding."""

    steps: tuple[Step, ...]
    """What happens to the row before it is read."""
    vectors: Floats
    """[1, channels]: what the row is multiplied by; [2, channels] for a gated neuron: gate and up."""
    constants: Floats
    """[1] or [2]: what is added."""
    gate: str | None = None
    """For a gated neuron: the activation, a key of `GATES`. The score is activation(gate) * up."""


def logits(stored: StoredMatrices, head: str, vectors: Floats, top: int) -> list[Ends]:
    """The tokens whose logits each of the vectors [k, channels] raises and lowers most, through the head's rows.

    The mean over the vocabulary is subtracted: a number added to all logits changes no prediction.
    """
    kept = _Kept(len(vectors), top)
    for first, block in stored.blocks(head, width=len(vectors)):
        kept.add(first, block @ vectors.T)
    return kept.ends(centred=True)


def answers(stored: StoredMatrices, embedding: str, questions: Sequence[Question], top: int) -> list[Ends]:
    """The tokens with the highest and the lowest answers to each question."""
    kept = _Kept(len(questions), top)
    asked: dict[tuple[object, ...], list[int]] = {}
    for number, question in enumerate(questions):
        earlier, last = _cut(question.steps)
        asked.setdefault((*earlier, last and last.kind), []).append(number)
    for first, block in stored.blocks(embedding, width=2 * len(questions)):
        scores = np.empty((len(block), len(questions)), dtype=np.float64)
        for numbers in asked.values():
            _answer([questions[number] for number in numbers], block, scores, numbers)
        kept.add(first, scores)
    return kept.ends(centred=False)


def _cut(steps: tuple[Step, ...]) -> tuple[tuple[Step, ...], Step | None]:
    """The steps without a last normaliser, and that one: its weight can be a part of the vectors.

    So all layers of a model share one pass, whose normalisers differ in their weights alone.
    """
    return (steps[:-1], steps[-1]) if steps and steps[-1].kind is not None else (steps, None)


def _answer(questions: Sequence[Question], block: Floats, scores: Floats, numbers: Sequence[int]) -> None:
    """Answer questions that differ at most in the weight and bias of the last normaliser."""
    earlier, last = _cut(questions[0].steps)
    rows = block
    for step in earlier:
        rows = step.of_rows(rows)
    rows = rows if last is None else last.unscaled(rows)
    vectors, constants = zip(*(_folded(question) for question in questions), strict=True)
    found = rows @ np.concatenate(vectors).T + np.concatenate(constants)
    place = 0
    for question, number in zip(questions, numbers, strict=True):
        scores[:, number] = found[:, place]
        if question.gate is not None:
            scores[:, number] = GATES[question.gate](found[:, place]) * found[:, place + 1]
        place += len(question.vectors)


def _folded(question: Question) -> tuple[Floats, Floats]:
    """Vectors and constants that have the weight and the bias of a last normaliser in them."""
    _, last = _cut(question.steps)
    vectors, constants = question.vectors, question.constants
    if last is not None and last.bias is not None:
        constants = constants + vectors @ last.bias
    if last is not None and last.weight is not None:
        vectors = vectors * last.weight
    return vectors, constants


class _Kept:
    """The outermost scores of each of some units, so far; scores that are not finite are left out."""

    def __init__(self, units: int, top: int) -> None:
        self._top = top
        nothing = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64)
        self._ends: list[list[tuple[Indices, Floats]]] = [[nothing, nothing] for _ in range(units)]
        self._sums, self._counts = np.zeros(units), np.zeros(units, dtype=np.int64)

    def add(self, first: int, scores: Floats) -> None:
        """Scores [tokens, units] of the tokens from `first` on."""
        finite = np.isfinite(scores)
        self._sums += np.where(finite, scores, 0).sum(axis=0)
        self._counts += finite.sum(axis=0)
        for unit, ends in enumerate(self._ends):
            tokens = np.flatnonzero(finite[:, unit])
            values = scores[tokens, unit]
            for side, sign in enumerate((-1, 1)):
                all_tokens = np.concatenate([ends[side][0], first + tokens])
                all_values = np.concatenate([ends[side][1], values])
                outer = _smallest(sign * all_values, self._top)
                ends[side] = all_tokens[outer], all_values[outer]

    def ends(self, *, centred: bool) -> list[Ends]:
        """What was kept; `centred` subtracts each unit's mean over all tokens."""
        means = self._sums / np.maximum(self._counts, 1) if centred else np.zeros(len(self._ends))
        return [
            Ends(*(tuple(zip(tokens.tolist(), (values - mean).tolist(), strict=True)) for tokens, values in sides))
            for sides, mean in zip(self._ends, means, strict=True)
        ]


def _smallest(values: Floats, count: int) -> Indices:
    """Places of the smallest values in their order; of equal ones the first."""
    if len(values) <= count:
        return np.argsort(values, kind="stable")
    among = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    return among[np.argsort(values[among], kind="stable")[:count]]
