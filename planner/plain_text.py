"""How text that may hold a stranger's names is shown to people: on one line, and as what it is."""

from __future__ import annotations

__all__ = ["plain"]


def plain(text: str) -> str:
    """The text without control, line-breaking or direction-changing characters, which become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
