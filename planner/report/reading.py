"""From a file to what a page can be made of, told apart by the file's `schema`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from planner import strict_json
from planner.errors import FileUnreadable
from planner.plan.problems import field_path
from planner.profile import Profile

__all__ = ["RENDERED", "read_document"]

_LARGEST = 2**29  # 20,000 tensors are some 60 MB
_HINT = (
    "`planner profile MODEL --out DIR` writes a profile.json; a model folder, a hub id, or the transcript that "
    "`planner propose --llm` leaves beside its plan can be given as well"
)


def _profile(text: str) -> Profile:
    return Profile.model_validate_json(text, strict=True)


RENDERED: dict[str, Callable[[str], Profile]] = {"planner/profile@1": _profile}
"""Schema to what reads such a file. A new kind is a line here and a branch in `render`."""


def read_document(text: str, what: str) -> Profile:
    """What is in `text`, which came from the file `what`. Raises `FileUnreadable`."""
    try:
        document = strict_json.loads(text, largest=_LARGEST)
    except strict_json.JsonRefused as error:
        raise FileUnreadable(f"{what} is not sound JSON: {error}", hint=_HINT) from None
    schema = document.get("schema") if isinstance(document, dict) else None
    read = RENDERED.get(schema) if isinstance(schema, str) else None
    if read is None:
        known = ", ".join(RENDERED)
        raise FileUnreadable(f"{what} {_kind(document, schema)}; a report can be made of {known}", hint=_HINT)
    try:
        return read(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        more = f" (and {error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
        where = field_path(first["loc"])
        raise FileUnreadable(f"{what} is no {schema}: {where}: {first['msg']}{more}", hint=_HINT) from None


def _kind(document: Any, schema: Any) -> str:
    if not isinstance(document, dict):
        return "is not a JSON object"
    return f"is a {schema[:80]!r}" if isinstance(schema, str) else "has no `schema`"
