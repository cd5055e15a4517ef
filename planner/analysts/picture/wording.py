"""How numbers, lists of numbers and sentences are written for a language model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from planner.analysts.aliases import Aliases, quoted
from planner.architecture import ModelMap
from planner.architecture.decoder import Experts

__all__ = ["Speaker", "ranges", "scientific", "token_text", "with_error"]

_MOST_PARTS = 24
_LONGEST_CURVE = 32
_LONGEST_TOKEN = 24
_CURVES = frozenset({"silu", "gelu", "relu", "relu2", "sigmoid", "tanh", "xielu"})
"""Activations whose names are ours; any other was read from config.json."""


def scientific(value: float | None) -> str:
    """`3.125e-02`: four digits, whatever the size. Counts as they are, nothing as `null`."""
    if value is None:
        return "null"
    if value == 0:
        return "0"
    return str(value) if isinstance(value, int) or not math.isfinite(value) else f"{value:.3e}"


def with_error(value: float, error: float | None) -> str:
    """`3.125e-02 (1.000e-03)`: a value and its standard error."""
    return f"{scientific(value)} ({'no error known' if error is None else scientific(error)})"


def token_text(text: str | None, number: int) -> str:
    """A token: its quoted text, with its number where that is not all of it; the number alone where nothing is left."""
    shown = quoted(text or "", longest=_LONGEST_TOKEN)
    if json.loads(shown) == "":
        return f"#{number}"
    return shown if json.loads(shown) == text else f"{shown} (#{number})"


def ranges(numbers: Iterable[int]) -> str:
    """`0-2,5` for 0, 1, 2 and 5, as a plan writes them; of more than 24 parts the first ones and `...`."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = [str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts[:_MOST_PARTS]]
    return ",".join(shown + ["..."] * (len(parts) > _MOST_PARTS))


class Speaker:
    """Says things about one checkpoint: strange names by their aliases, its configuration's own words quoted."""

    def __init__(self, aliases: Aliases, model: ModelMap) -> None:
        self._aliases = aliases
        self._curves = sorted(_foreign_curves(model), key=len, reverse=True)

    def name(self, tensor: str) -> str:
        """What a tensor is called."""
        return self._aliases.shown(tensor)

    def hides(self, tensor: str) -> bool:
        """Whether a tensor is called by an alias, because its name or its role might say anything."""
        return self._aliases.shown(tensor) != tensor

    def sentence(self, text: str) -> str:
        """A sentence of ours that may name tensors, or an activation that config.json names."""
        for curve in self._curves:
            text = text.replace(curve, quoted(curve, longest=_LONGEST_CURVE))
        return self._aliases.cleaned(text)


def _foreign_curves(model: ModelMap) -> set[str]:
    decoder = model.decoder
    if decoder is None:
        return set()
    found = set()
    for number in range(decoder.layers):
        mlp = decoder.layer(number).mlp
        found.add((mlp.expert if isinstance(mlp, Experts) else mlp).activation)
    return {name for name in found - _CURVES if name.strip()}
