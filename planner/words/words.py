"""What single units of a model speak of, in tokens, read from the weights alone.

A neuron, a head, a channel or a row of the embedding is a vector in the residual stream. Through the final norm and the
head it raises some tokens' logits and lowers others; against the embeddings it is read by some tokens more than by
others. That is a description of the direct path only (see `direct_paths`): what later layers make of a unit's output,
and what earlier ones put in its input, is not in it. It names units for a reader; it proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.architecture import ModelMap
from planner.checkpoint import Checkpoint, TokensUnresolved, find_tokens
from planner.plain_text import plain
from planner.records import Record
from planner.words.direct_paths import DirectPaths
from planner.words.stored_matrices import StoredMatrices, WordsUnknown
from planner.words.unit_vectors import Unit, UnitKind, UnitVectors, vectors_of
from planner.words.vocabulary_scores import Ends, answers, logits

__all__ = ["TokenWeight", "Unit", "UnitWords", "sentence", "words_of"]

_DIGITS = 5
_LONGEST = 40
_NO_TEXTS = "there is no tokenizer.json that can be used, so tokens are given by number"


class TokenWeight(Record):
    """A token, and how strongly it belongs."""

    id: int
    """The token's number: its row of the embedding."""
    text: str | None
    """The text it stands for; bytes that are no text are written as escapes. null where no tokenizer tells."""
    value: float
    """What the list that it is in measures."""


class UnitWords(Record):
    """The tokens that a unit speaks of, by the direct path between embedding and logits alone."""

    kind: UnitKind
    """What the unit is."""
    layer: int | None
    """The block it is in; for a channel, the block after which it is looked at, null for the last."""
    index: int
    """Its number among the layer's neurons or query heads, the stream's channels, or the token's id."""
    expert: int | None = None
    """The expert that a neuron belongs to, where there are several."""
    text: str | None = None
    """For a token, the text it stands for."""
    promotes: tuple[TokenWeight, ...] = ()
    """Tokens whose logits the unit raises most: the change per unit of activation, the mean over the vocabulary taken
    out, and the final norm's scale, which all tokens share, left out. The largest first."""
    suppresses: tuple[TokenWeight, ...] = ()
    """Tokens whose logits it lowers most, in the same measure. The lowest first."""
    reads_most: tuple[TokenWeight, ...] = ()
    """Tokens to which it reacts most where their embedding stands alone in the stream. For a neuron: the activation if
    it has a gate, else the activation's argument. For a head: how far the value goes along its leading direction."""
    reads_least: tuple[TokenWeight, ...] = ()
    """Tokens to which it reacts least, or the other way. The lowest first."""
    neighbours: tuple[TokenWeight, ...] = ()
    """For a token: those with the most similar embeddings, by cosine."""
    share: float | None = None
    """For a head: how much of the squared Frobenius norm of its output times value matrix the leading direction holds,
    0 to 1; the lists speak of that direction alone, and one that reads the opposite writes the opposite."""
    note: str | None = None
    """Why there are no words, or what to know about them."""


def words_of(checkpoint: Checkpoint, model: ModelMap, units: Sequence[Unit], *, top: int = 8) -> tuple[UnitWords, ...]:
    """The words of each unit, in the order of `units`, with at most `top` tokens a list.

    Reads the rows and columns of the units, and passes once over the head and once over the embedding, with at most
    32 MiB of a matrix at a time, as float64. A unit of which nothing can be said has a note that tells why. Raises
    ValueError for a `top` below 1, and `FileUnreadable` or `ShardTruncated` where the files fail.
    """
    if top < 1:
        raise ValueError("top must be at least 1")
    stored = StoredMatrices(checkpoint)
    try:
        paths = DirectPaths(model, stored)
        with np.errstate(all="ignore"):  # what is not finite is left out of the lists
            vectors = vectors_of(units, model, paths, stored)
            ends = _ends(vectors, paths, stored, top)
    except WordsUnknown as error:
        vectors, ends = [UnitVectors(note=str(error))] * len(units), [_Lists()] * len(units)
    texts = _texts(checkpoint, units, ends)
    return tuple(_words(*parts, texts, top) for parts in zip(units, vectors, ends, strict=True))


@dataclass(frozen=True, eq=False)
class _Lists:
    """The tokens at the ends of one unit's scores; None where it has no such scores."""

    writes: Ends | None = None
    reads: Ends | None = None

    @property
    def tokens(self) -> set[int]:
        """All tokens that occur."""
        sides = (ends for ends in (self.writes, self.reads) if ends is not None)
        return {token for ends in sides for token, _ in (*ends.highest, *ends.lowest)}


def _ends(vectors: Sequence[UnitVectors], paths: DirectPaths, stored: StoredMatrices, top: int) -> list[_Lists]:
    """The ends of every unit's scores."""
    writing = {place: one.writes for place, one in enumerate(vectors) if one.writes is not None}
    written = logits(stored, paths.head.tensor, np.stack(list(writing.values())), top) if writing else []
    asking = {place: one.question for place, one in enumerate(vectors) if one.question is not None}
    # One more than are shown: a token is nearest to itself.
    asked = answers(stored, paths.embedding, list(asking.values()), top + 1) if asking else []
    writes, reads = dict(zip(writing, written, strict=True)), dict(zip(asking, asked, strict=True))
    found = [_Lists(writes.get(place), reads.get(place)) for place in range(len(vectors))]
    return [
        _Lists(one.writes.turned(), one.reads.turned())
        if vector.share is not None and one.writes and one.reads and _falls_more(one.writes)
        else one
        for one, vector in zip(found, vectors, strict=True)
    ]


def _falls_more(ends: Ends) -> bool:
    """Whether the lowest score is further from 0 than the highest.

    A singular direction has no sign of its own: it is given the one with which what it promotes is the stronger end.
    """
    return bool(ends.lowest) and -ends.lowest[0][1] > ends.highest[0][1]


def _texts(checkpoint: Checkpoint, units: Sequence[Unit], ends: Sequence[_Lists]) -> dict[int, str | None] | None:
    """The texts of all tokens that occur, by id; None where no tokenizer tells any."""
    ids = set().union(*(one.tokens for one in ends))
    ids |= {unit.index for unit, one in zip(units, ends, strict=True) if unit.kind == "token" and one.reads}
    if not ids:
        return {}
    try:
        found = find_tokens(checkpoint.path, ids=sorted(ids), rows=max(ids) + 1)
    except TokensUnresolved:
        return None
    return {token.id: token.text for token in found.tokens}


def _words(unit: Unit, vectors: UnitVectors, ends: _Lists, texts: dict[int, str | None] | None, top: int) -> UnitWords:
    def named(tokens: Sequence[tuple[int, float]]) -> tuple[TokenWeight, ...]:
        rounded = ((token, float(f"{value:.{_DIGITS}g}")) for token, value in tokens[:top])
        return tuple(TokenWeight(id=token, text=(texts or {}).get(token), value=value) for token, value in rounded)

    writes, reads = ends.writes or Ends((), ()), ends.reads or Ends((), ())
    note = vectors.note
    if note is None and ends.writes is not None and not writes.highest:
        note = "its weights are not finite"
    if note is None and texts is None:
        note = _NO_TEXTS
    is_token = unit.kind == "token"
    return UnitWords(
        kind=unit.kind,
        layer=unit.layer,
        index=unit.index,
        expert=unit.expert,
        text=(texts or {}).get(unit.index) if is_token and ends.reads else None,
        promotes=named([(token, value) for token, value in writes.highest if value > 0]),
        suppresses=named([(token, value) for token, value in writes.lowest if value < 0]),
        reads_most=() if is_token else named(reads.highest),
        reads_least=() if is_token else named(reads.lowest),
        neighbours=named([(token, value) for token, value in reads.highest if token != unit.index]) if is_token else (),
        share=None if vectors.share is None else float(f"{vectors.share:.{_DIGITS}g}"),
        note=note,
    )


def sentence(words: UnitWords, *, most: int = 4) -> str:
    """The words on one line for a terminal, with at most `most` tokens a list; strangers' characters are escaped."""
    of = f" of expert {words.expert}" if words.expert is not None else ""
    of += f" of layer {words.layer}" if words.layer is not None else ""
    own = f" {_quoted(words.text)}" if words.text is not None else ""
    lists = {
        "promotes": words.promotes,
        "suppresses": words.suppresses,
        "reads": words.reads_most,
        "least": words.reads_least if words.kind == "head" else (),
        "is nearest to": words.neighbours,
    }
    said = [
        f"{verb} " + " ".join(_quoted(t.text) if t.text is not None else f"#{t.id}" for t in tokens[:most])
        for verb, tokens in lists.items()
        if tokens
    ]
    if words.share is not None:
        said.append(f"by the direction that holds {words.share:.0%} of its OV matrix")
    line = f"{words.kind} {words.index}{of}{own}"
    if said:
        line += " " + "; ".join(said)
    return f"{line}{' - ' if said else ': '}{plain(words.note)}" if words.note else line


def _quoted(text: str) -> str:
    shown = plain(text).replace('"', '\\"')
    return f'"{shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"}"'
