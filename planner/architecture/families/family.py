"""What a family's file declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.architecture.config import Config
from planner.architecture.decoder import Decoder

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """Model types, and how their configuration becomes a decoder."""

    model_types: tuple[str, ...]
    """Values of `model_type` in config.json."""
    decoder: Callable[[Config], Decoder]
    """Raises `Unreadable` where the configuration asks for something that is not declared here."""
