"""What tokens cost, by the price list that litellm brings along; read as a file, because importing litellm is slow."""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path
from typing import Any

from planner.llm.base import Usage
from planner.records import Record
from planner.strict_json import JsonRefused, loads

__all__ = ["Price", "cost_of", "price_of"]

_FILE = "model_prices_and_context_window_backup.json"


class Price(Record):
    """US dollars for one token."""

    input_usd: float
    """For a token read."""
    output_usd: float
    """For a token written."""


def price_of(model: str) -> Price | None:
    """The price of `NAME` or `provider/NAME` by litellm's list; None where litellm is not installed or knows none.

    Prices change; the list is as old as the installed litellm. A cheaper price for cached tokens is left out, so a cost
    is rather too high than too low.
    """
    entry = _listed().get(model)
    provider, slash, name = model.partition("/")
    if entry is None and slash:  # most names stand in the list without their provider
        found = _listed().get(name)
        entry = found if isinstance(found, dict) and found.get("litellm_provider") == provider else None
    if not isinstance(entry, dict):
        return None
    prices = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    numbers = [float(price) for price in prices if isinstance(price, int | float) and not isinstance(price, bool)]
    if len(numbers) != 2 or not all(math.isfinite(number) and number >= 0 for number in numbers):
        return None
    return Price(input_usd=numbers[0], output_usd=numbers[1])


def cost_of(usage: Usage, price: Price | None) -> float | None:
    """US dollars for `usage`; None where the price is not known, or the endpoint did not count."""
    if price is None or not (usage.input_tokens or usage.output_tokens):
        return None
    return usage.input_tokens * price.input_usd + usage.output_tokens * price.output_usd


@functools.cache
def _listed() -> dict[str, Any]:
    try:
        found = importlib.util.find_spec("litellm")
        origin = found.origin if found is not None else None
        if origin is None:
            return {}
        value = loads((Path(origin).parent / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, JsonRefused):
        return {}
    return value if isinstance(value, dict) else {}
