"""What single rows of a tensor stand for, in words, for the few that a plan changes most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from planner.architecture import ModelMap
from planner.checkpoint import Checkpoint, TokensUnresolved, find_tokens
from planner.plain_text import plain
from planner.words import Unit, UnitWords, words_of

__all__ = ["row_words"]

Axis = Literal["rows", "columns"]
_TOKENS = 3
_LONGEST = 24


def row_words(
    checkpoint: Checkpoint, model: ModelMap, rows: Mapping[str, tuple[Axis, Sequence[int]]]
) -> dict[tuple[str, int], str]:
    """By tensor and row (or column): a token's text, what a neuron or head promotes; nothing where nothing is known.

    Reads the weights as they are, over the direct path alone.
    """
    meant: dict[tuple[str, int], Unit] = {}
    tokens: dict[tuple[str, int], int] = {}
    for name, (axis, indices) in rows.items():
        for index in indices:
            if name in (model.embedding, model.head) and axis == "rows":
                tokens[name, index] = index
            elif unit := _unit(model, name, axis, index):
                meant[name, index] = unit
    units = list(dict.fromkeys(meant.values()))
    told = dict(zip(units, words_of(checkpoint, model, units, top=_TOKENS), strict=True)) if units else {}
    found = {place: _said(told[unit]) for place, unit in meant.items()}
    return found | _texts(checkpoint, tokens)


def _unit(model: ModelMap, name: str, axis: Axis, index: int) -> Unit | None:
    """The neuron or query head that a row belongs to."""
    parameter = model.parameters.get(name)
    for band in parameter.bands if parameter else ():
        # A key or value head serves several query heads, of which none could be named alone.
        if parameter and band.axis == axis and (band.unit == "neuron" or band.part == "query"):
            for number, members in enumerate(band.indices):
                if index in members:
                    return Unit(band.unit, parameter.layer, number, parameter.expert)
    return None


def _said(words: UnitWords) -> str:
    lists = {"promotes": words.promotes, "suppresses": words.suppresses}
    said = [
        f"{verb} " + " ".join(_quoted(token.text, token.id) for token in tokens[:_TOKENS])
        for verb, tokens in lists.items()
        if tokens
    ]
    return f"{words.kind} {words.index}" + (f": {'; '.join(said)}" if said else "")


def _texts(checkpoint: Checkpoint, tokens: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], str]:
    if not tokens:
        return {}
    ids = sorted(set(tokens.values()))
    try:
        texts = {token.id: token.text for token in find_tokens(checkpoint.path, ids=ids, rows=max(ids) + 1).tokens}
    except TokensUnresolved:
        texts = {}
    return {place: f"token {_quoted(texts.get(number), number)}" for place, number in tokens.items()}


def _quoted(text: str | None, number: int) -> str:
    if text is None:
        return f"#{number}"
    shown = plain(text)
    return f'"{shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"}"'
