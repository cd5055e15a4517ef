"""Patches as files, for other machines."""

from __future__ import annotations

__all__: list[str] = []
