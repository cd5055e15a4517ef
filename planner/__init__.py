"""Plan, review, apply, measure and take back changes to a language model's weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner import profile

__all__ = ["__version__", "profile"]

__version__ = "0.6.0"


def __getattr__(name: str) -> Any:
    if name == "profile":  # `import planner` alone is enough for `planner.profile(...)`, and costs nothing without it
        return importlib.import_module("planner.profile")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
