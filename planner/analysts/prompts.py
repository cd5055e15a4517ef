"""The prompts: found, filled and hashed."""

from __future__ import annotations

import hashlib
from typing import Any

from planner.resources import resource

__all__ = ["prompts_sha256", "render"]

_TEMPLATES = ("system.md", "task.md", "repair.md")


def render(template: str, **variables: Any) -> str:
    """A prompt with its variables filled in; a missing one is an error, never an empty place."""
    from jinja2 import Environment, StrictUndefined

    # The result is plain text for a model, not HTML: escaping would change tensor names. What comes from outside goes
    # in as values only, never as template text.
    environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701
    return environment.from_string(resource("prompts", template)).render(**variables)


def prompts_sha256() -> str:
    """Digest of all templates, so that a plan says with which words its analyst was asked."""
    hasher = hashlib.sha256()
    for name in _TEMPLATES:
        text = resource("prompts", name)
        hasher.update(f"{name} {len(text.encode())}\n{text}".encode())
    return hasher.hexdigest()
