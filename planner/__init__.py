"""Plan, review, apply, measure and take back changes to a language model's weights."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
