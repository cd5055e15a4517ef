"""Strangers' text on its way into a page: what is shown, what is a link, what is data."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from planner.plain_text import plain

__all__ = ["link_to", "plain", "script_json"]

_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def link_to(tensor: str) -> str:
    """The link within the page that opens a tensor's detail."""
    return "#tensor=" + quote(tensor, safe="", errors="replace")


def script_json(document: Any) -> str:
    """Compact ASCII JSON that can stand in a script element: no `<`, `>`, `&` and no line separator in it."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)
