"""Single rows and columns: what a factor for one of them alone would bring, and which token a row is.

The evidence file lists the few that are most sensitive; its arrays hold all. They are worked out once for a
conversation, and the tokenizer, which may be a large file, is read once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from planner.analysts.base import Brief
from planner.analysts.tools.meanings import escaped
from planner.checkpoint import TokensUnresolved, find_tokens
from planner.effects import Known
from planner.evidence import Gradient, Gradients
from planner.evidence.analysis import rounding_of

__all__ = ["MOST_ROWS", "Axis", "MeasuredRows", "RowStep"]

Axis = Literal["row", "column"]
MOST_ROWS = 40
"""The most rows or columns that are ever listed at once."""


@dataclass(frozen=True)
class RowStep:
    """A row or column with the best factor for it alone."""

    tensor: str
    number: int
    """Counted from 0."""
    gradient: Gradient


@dataclass
class MeasuredRows:
    """Every row and column of the tensors that have several of them."""

    brief: Brief
    known: Known

    @cached_property
    def gradients(self) -> Gradients:
        """Of all, in the order of the layout's units."""
        evidence, measured = self.known
        return Gradients.of_units(measured, rounding_of(evidence.dtype))

    def largest(self, tensors: Iterable[str], axis: Axis, most: int) -> tuple[int, list[RowStep]]:
        """How many rows (or columns) these tensors have, and the `most` of the largest predicted gain."""
        found = [(name, where) for name in tensors if (where := self._places(name, axis)) is not None]
        count = sum(where.stop - where.start for _, where in found)
        if not count:
            return 0, []
        places = np.concatenate([np.arange(where.start, where.stop) for _, where in found])
        owners = np.repeat(np.arange(len(found)), [where.stop - where.start for _, where in found])
        gradients = self.gradients
        order = np.lexsort((-np.abs(gradients.calibrated[places]), -gradients.gain[places]))[:most]
        return count, [
            RowStep(
                tensor=found[owners[n]][0],
                number=int(places[n]) - found[owners[n]][1].start,
                gradient=gradients.at(int(places[n])),
            )
            for n in order
        ]

    def at(self, tensor: str, axis: Axis, number: int) -> Gradient | None:
        """One row or column; None where the arrays do not hold it."""
        where = self._places(tensor, axis)
        if where is None or number >= where.stop - where.start:
            return None
        return self.gradients.at(where.start + number)

    def is_table(self, tensor: str) -> bool:
        """Whether its rows are tokens."""
        return tensor in (self.brief.model.embedding, self.brief.model.head)

    def token(self, tensor: str, axis: Axis, number: int) -> str | None:
        """The token that a row of the embedding or the head is, quoted; None where it is no token or not known."""
        text = self._texts.get(number) if axis == "row" and self.is_table(tensor) else None
        return None if text is None else escaped(text)

    def _places(self, tensor: str, axis: Axis) -> slice | None:
        """Where its rows or columns lie; None where there is but one, which is all of the tensor."""
        place = self.known[1].layout.places.get(tensor)
        if place is None or place.shape[0 if axis == "row" else 1] < 2:
            return None
        return place.rows if axis == "row" else place.columns

    @cached_property
    def _texts(self) -> dict[int, str | None]:
        """The texts of all rows that can come to be listed, by id: a list is always the beginning of a ranking."""
        ids: set[int] = set()
        for tensor in self.known[0].tensors:
            if self.is_table(tensor.name):
                ids |= {one.number for one in self.largest([tensor.name], "row", MOST_ROWS)[1]}
                ids |= {unit.index for unit in tensor.top_rows}
        if not ids:
            return {}
        try:
            found = find_tokens(self.brief.checkpoint.path, ids=sorted(ids), rows=max(ids) + 1)
        except TokensUnresolved:
            return {}
        return {token.id: token.text for token in found.tokens}
