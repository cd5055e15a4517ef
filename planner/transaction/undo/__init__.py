"""Undo data: what a patch destroys and no more, and the way back."""

from __future__ import annotations

__all__: list[str] = []
