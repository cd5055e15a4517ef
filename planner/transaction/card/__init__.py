"""The model card of a result."""

from __future__ import annotations

__all__: list[str] = []
