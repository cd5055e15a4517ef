"""Changes in place, where there is no room for a second checkpoint."""

from __future__ import annotations

__all__: list[str] = []
