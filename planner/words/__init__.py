"""What single units of a model speak of, in tokens: read from the weights alone, with no forward pass."""

from __future__ import annotations

from planner.words.unit_vectors import Unit
from planner.words.words import TokenWeight, UnitWords, sentence, words_of

__all__ = ["TokenWeight", "Unit", "UnitWords", "sentence", "words_of"]
