"""The rows and columns that can win most, each alone: one list over all tensors, with the token where a row is one.

The evidence keeps the largest of each tensor by sensitivity, which does not compare them: a large slope with much
curvature wins less than a small one without. So they are ranked by the gain that the arrays of the evidence predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.analysts.base import Brief
from planner.analysts.picture.budget import Line
from planner.analysts.picture.wording import Speaker, scientific, token_text, with_error
from planner.checkpoint import Checkpoint, TokensUnresolved, find_tokens
from planner.evidence import Measured, Scores
from planner.evidence.measured import Floats
from planner.evidence.quadratic import Quadratic
from planner.evidence.types import TopUnit

__all__ = ["single_units"]

_FIRST = 12
_KEPT = 60
_MOST_JUDGED = 1000
"""Candidates, by sensitivity, whose gain is computed: a checkpoint of many tensors has a hundred thousand."""
_FARTHEST = 1.0
"""Log of a factor; predictions are not trusted beyond (`evidence.prediction`)."""
_KIND = "largest rows and columns"
_HEADER = (
    "- rows and columns of all tensors that can win most, each alone: fact, value (standard error), gain by its best "
    "factor (0.37 or 2.7 if not given), judged on documents that did not choose it:"
)
_HEADER_WITHOUT = (
    "- largest rows and columns of all tensors, by value over standard error: fact, value (standard error):"
)


@dataclass(frozen=True)
class _Candidate:
    tensor: str
    axis: Literal["row", "column"]
    unit: TopUnit

    @property
    def fact(self) -> str:
        """What a plan cites it by."""
        return f"probe.{self.axis}.{self.unit.index}"

    @property
    def certainty(self) -> float:
        """|value| in standard errors; 0 where no error is known."""
        error = self.unit.calibrated_se
        return abs(self.unit.calibrated) / error if error else 0.0


def single_units(brief: Brief, speaker: Speaker, tier: float) -> tuple[list[Line], int]:
    """A heading and a line for each, the first of them in `tier`; and for how many no line was made."""
    if brief.evidence is None:
        return [], 0
    evidence, measured = brief.evidence
    every: list[_Candidate] = []
    for tensor in evidence.tensors:
        every += [_Candidate(tensor.name, "row", unit) for unit in tensor.top_rows]
        every += [_Candidate(tensor.name, "column", unit) for unit in tensor.top_columns]
    if not every:
        return [], 0
    largest = sorted(every, key=lambda one: -abs(one.unit.calibrated))[:_MOST_JUDGED]
    judged = _judged(measured, largest)
    gains = judged or [(0.0, 0.0)] * len(largest)
    # Without arrays, or with documents that are too few to judge, certainty is what is left to go by.
    order = sorted(range(len(largest)), key=lambda n: (-max(gains[n][0], 0.0), -largest[n].certainty))
    alike = _alike(largest, order)
    order = list(alike)[:_KEPT]
    texts = _tokens(brief, [largest[n] for n in order])
    lines = [Line(_HEADER if judged else _HEADER_WITHOUT, (tier, -1), "facts of the evidence")]
    for place, n in enumerate(order):
        one = largest[n]
        told = f"  {speaker.name(one.tensor)} {one.fact} "
        told += with_error(one.unit.calibrated, one.unit.calibrated_se)
        if judged:
            told += f", {_gain(*judged[n])}"
        if one.unit.index in texts and _is_token(one, brief):
            told += f", token {texts[one.unit.index]}"
        if alike[n]:
            others = (f"{speaker.name(largest[m].tensor)} {largest[m].fact}" for m in alike[n])
            told += f"; the same edit: {', '.join(others)}"
        lines.append(Line(told, (tier, place) if place < _FIRST else (4, 1.65, place), _KIND))
    return lines, len(every) - sum(1 + len(alike[n]) for n in order)


def _alike(candidates: Sequence[_Candidate], order: Sequence[int]) -> dict[int, list[int]]:
    """The first of each edit, in this order, with those whose value and error are the same to three digits.

    A neuron is a row of `up_proj` and a column of `down_proj`, and either factor does the same.
    """
    first: dict[str, int] = {}
    found: dict[int, list[int]] = {}
    for n in order:
        unit = candidates[n].unit
        known = unit.calibrated_se is not None and unit.calibrated != 0
        edit = f"{unit.calibrated:.2e} {unit.calibrated_se:.2e}" if known else str(n)
        if edit in first:
            found[first[edit]].append(n)
        else:
            first[edit] = n
            found[n] = []
    return found


def _gain(gain: float, step: float) -> str:
    if gain <= 0:
        return "no gain"
    # Most go as far as they may, which the sign of the value says already.
    return f"gain {scientific(gain)}" + (f" at factor {np.exp(step):.3g}" if abs(step) < _FARTHEST else "")


def _judged(measured: Measured | None, candidates: Sequence[_Candidate]) -> list[tuple[float, float]]:
    """Gain and log of the best factor of each; nothing where the arrays are not there, or are of other tensors."""
    places = measured.layout.places if measured else {}
    if measured is None or any(one.tensor not in places for one in candidates):
        return []
    axes = {"row": "rows", "column": "columns"}
    chosen = [getattr(places[one.tensor], axes[one.axis]).start + one.unit.index for one in candidates]
    sets = {name: Scores(scores.tensors, scores.units[:, chosen]) for name, scores in measured.sets.items()}
    model = Quadratic.of(Measured(measured.layout, measured.goal, measured.drift, sets), "units")
    gains = np.zeros(len(chosen))
    for number in (0, 1):
        step = _step(*model.half(number))
        gradient, scores = model.half(1 - number)
        gains -= (gradient * step + 0.5 * (scores**2).sum(axis=0) * step**2) / 2
    return list(zip(gains.tolist(), _step(model.gradient, model.fisher).tolist(), strict=True))


def _step(gradient: Floats, scores: Floats) -> Floats:
    """[n]: the best step of each alone, at most `_FARTHEST`; none where there is no curvature."""
    curvature = (scores**2).sum(axis=0)
    steep = curvature > np.finfo(np.float32).tiny
    step: Floats = np.divide(-gradient, curvature, out=np.zeros_like(gradient), where=steep)
    return np.clip(step, -_FARTHEST, _FARTHEST)


def _is_token(one: _Candidate, brief: Brief) -> bool:
    return one.axis == "row" and one.tensor in (brief.model.embedding, brief.model.head)


def _tokens(brief: Brief, candidates: Sequence[_Candidate]) -> Mapping[int, str]:
    """The quoted text of each token whose row is among them; nothing where there is no tokenizer to ask."""
    ids = sorted({one.unit.index for one in candidates if _is_token(one, brief)})
    return dict(_texts(brief.checkpoint, ids))


def _texts(checkpoint: Checkpoint | None, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    if checkpoint is None or not ids:
        return
    try:
        found = find_tokens(checkpoint.path, ids=ids, rows=max(ids) + 1)
    except TokensUnresolved:
        return
    yield from ((token.id, token_text(token.text, token.id)) for token in found.tokens)
