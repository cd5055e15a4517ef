"""Text that ships with the planner: prompts/ and schemas/.

They stand at the root of the repository, where people look for them. A wheel carries them inside the package, under
`_data`, and may itself be read from a zip file, so they are reached through importlib.resources and never by path.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

__all__ = ["resource", "resource_folder"]


def resource_folder(kind: str) -> Traversable:
    """The folder `prompts` or `schemas`: the package's own copy, or the checkout's in an editable install."""
    packed = files("planner").joinpath("_data", kind)
    return packed if packed.is_dir() else Path(__file__).parents[1] / kind


def resource(kind: str, name: str) -> str:
    """The text of one file in it."""
    return resource_folder(kind).joinpath(name).read_text(encoding="utf-8")
