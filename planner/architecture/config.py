"""config.json as a family reads it: every value checked before it is believed."""

from __future__ import annotations

from typing import Any

__all__ = ["Config", "Unreadable"]

_MOST = 1 << 24
_LARGEST = 1e300
_ROTATIONS = {"default", "linear", "dynamic", "yarn", "longrope", "su", "llama3"}
"""Rope types that change frequencies only, not which dimensions turn together."""


class Unreadable(ValueError):
    """The configuration or the tensors do not say what the family's code would need; the message says what."""


class Config:
    """Typed access to a configuration. Keys given first come first; null counts as absent.

    Every method raises `Unreadable` where the value has the wrong type, or is absent without a default.
    """

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def assuming(self, **defaults: Any) -> Config:
        """The same, with values for keys that are absent altogether; a null stays null, as in transformers."""
        return Config({**defaults, **self.raw})

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def count(self, *keys: str, default: int | None = None) -> int:
        """A whole number above zero, and not absurdly large."""
        value = self._first(keys, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MOST:
            raise Unreadable(f"{keys[0]} is not a whole number above zero")
        return value

    def flag(self, *keys: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._first(keys, default)
        if not isinstance(value, bool):
            raise Unreadable(f"{keys[0]} is neither true nor false")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """Any finite number."""
        value = self._first(keys, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not -_LARGEST <= value <= _LARGEST:
            raise Unreadable(f"{keys[0]} is not a finite number")
        return float(value)

    def text(self, *keys: str, default: str | None = None) -> str:
        """A string."""
        value = self._first(keys, default)
        if not isinstance(value, str):
            raise Unreadable(f"{keys[0]} is not a text")
        return value

    def numbers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers; empty where the key is absent."""
        value = self.raw.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
            raise Unreadable(f"{key} is not a list of whole numbers")
        return tuple(value)

    def part(self, key: str) -> Config:
        """A configuration inside the configuration; an empty one where the key is absent."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise Unreadable(f"{key} is not an object")
        return Config(value or {})

    def rotary_part(self, default: float = 1.0, key: str = "partial_rotary_factor") -> float:
        """Which part of a head's dimensions is rotated: `partial_rotary_factor`, wherever a release has put it.

        `key` is its name at the top level. As in transformers, `rope_scaling` of older files goes before
        `rope_parameters`, and both before the top level.
        """
        inside = self.part("rope_scaling")
        inside = inside if inside.raw else self.part("rope_parameters")
        if inside.text("rope_type", "type", default="default") not in _ROTATIONS:
            raise Unreadable("the rope type is not one that rotates the usual planes")
        if inside.has("partial_rotary_factor"):
            return inside.number("partial_rotary_factor")
        return self.number(key, default=default)

    def _first(self, keys: tuple[str, ...], default: Any) -> Any:
        return next((self.raw[key] for key in keys if self.raw.get(key) is not None), default)
