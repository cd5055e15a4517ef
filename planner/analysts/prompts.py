"""The prompts: found, filled and hashed. The first line of each says which variables it takes."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from planner.resources import resource

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["TEMPLATES", "declared_variables", "prompts_sha256", "render"]

TEMPLATES = (
    "system.md",
    "task.md",
    "look.md",
    "protocol.md",
    "findings.md",
    "answer.md",
    "repair.md",
    "example.md",
)
"""Every prompt there is."""
_DECLARED = re.compile(r"\{# .*?\. Variables: ([a-z_, ]+)\. #\}\n")


def render(template: str, **variables: Any) -> str:
    """A prompt with its variables filled in; a missing one is an error, never an empty place."""
    declared, compiled = _compiled(template)
    if set(variables) != set(declared):
        raise KeyError(f"{template} takes {', '.join(declared) or 'nothing'}, and was given {', '.join(variables)}")
    return compiled.render(**variables)


@cache
def _compiled(template: str) -> tuple[tuple[str, ...], Template]:
    from jinja2 import Environment, StrictUndefined

    text = resource("prompts", template)
    # The result is plain text for a model, not HTML: escaping would change tensor names. What comes from outside goes
    # in as values only, never as template text.
    environment = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, keep_trailing_newline=True)  # noqa: S701
    return declared_variables(text), environment.from_string(text)


def declared_variables(text: str) -> tuple[str, ...]:
    """The variables that the first line of a template says it takes."""
    found = _DECLARED.match(text)
    if found is None:
        raise KeyError("a template begins with a comment that says its variables")
    return () if found[1] == "none" else tuple(found[1].split(", "))


def prompts_sha256() -> str:
    """Digest of all templates, so that a plan says with which words its analyst was asked."""
    hasher = hashlib.sha256()
    for name in TEMPLATES:
        text = resource("prompts", name)
        hasher.update(f"{name} {len(text.encode())}\n{text}".encode())
    return hasher.hexdigest()
