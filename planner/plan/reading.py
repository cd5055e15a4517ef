"""From text to a plan: strict JSON, the right version, every field checked, every problem reported at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from planner import strict_json
from planner.errors import PlanInvalid, PlanTooNew
from planner.operations import FORMS, OPERATIONS
from planner.plan.elements import ELEMENTS
from planner.plan.problems import Problem, field_path
from planner.plan.types import PLAN_SCHEMA, Plan

__all__ = ["problems_of", "read_plan", "write_plan"]

_SCHEMA = re.compile(r"planner/plan@([0-9]{1,9})")
_LARGEST = 16 * 2**20


def read_plan(text: str) -> Plan:
    """The plan in `text`. Raises `PlanTooNew` for a later version of the format, `PlanInvalid` with all problems."""
    try:
        document = strict_json.loads(text, largest=_LARGEST)
    except strict_json.JsonRefused as error:
        raise PlanInvalid(f"the plan is not sound JSON: {error}", hint=_SEE_SCHEMA) from None
    if not isinstance(document, dict):
        raise PlanInvalid("the plan is not a JSON object", hint=_SEE_SCHEMA)
    _check_version(document.get("schema"))
    try:
        return Plan.model_validate_json(text, strict=True)  # lax mode would take "1.5" for a number
    except ValidationError as error:
        problems = problems_of(error, document)
        raise PlanInvalid(
            f"the plan has {len(problems)} problem{'s' if len(problems) > 1 else ''}",
            hint=_SEE_SCHEMA,
            problems=tuple(str(problem) for problem in problems),
        ) from None


def write_plan(plan: Plan) -> bytes:
    """The plan as a file that people read: indented, ending in a newline."""
    return plan.model_dump_json(indent=2).encode() + b"\n"


def problems_of(error: ValidationError, document: Any) -> list[Problem]:
    """What pydantic found, as problems that name the modification and the field."""
    return [
        Problem(
            modification=_id_at(document, item["loc"]),
            code="plan-invalid",
            message=f"{field_path(_without_tags(item['loc']))}: {_said(item)}",
            hint=_hint(item["type"]),
        )
        for item in error.errors(include_url=False)
    ]


_SEE_SCHEMA = "schemas/plan.schema.json says what a plan holds; `planner propose` writes one"


def _check_version(schema: Any) -> None:
    version = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    if version and int(version[1]) > int(PLAN_SCHEMA.rpartition("@")[2]):
        raise PlanTooNew(
            f"the plan is written as {schema}; this planner reads {PLAN_SCHEMA}", hint="use a newer planner"
        )
    if schema != PLAN_SCHEMA:
        raise PlanInvalid(f"`schema` is {schema!r}, not {PLAN_SCHEMA!r}", hint=_SEE_SCHEMA)


_TAGS: dict[str | int, Collection[str | int]] = {"operation": OPERATIONS, "elements": ELEMENTS}


def _without_tags(location: Sequence[str | int]) -> tuple[str | int, ...]:
    """pydantic puts kinds and forms into the path (operation.scale.factor.<ramp>); the document has no such levels."""
    steps = [step for step in location if step not in FORMS]
    for place in range(1, len(steps)):
        if steps[place] in _TAGS.get(steps[place - 1], ()):
            return (*steps[:place], *steps[place + 1 :])
    return tuple(steps)


def _id_at(document: Any, location: Sequence[str | int]) -> str | None:
    try:
        found = document["modifications"][location[1]]["id"] if location[0] == "modifications" else None
    except (KeyError, IndexError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _said(item: ErrorDetails) -> str:
    """pydantic's words, or ours where they list what the hint lists."""
    if item["type"] == "union_tag_invalid" and "ctx" in item:
        return f"there is no operation {str(item['ctx'].get('tag'))[:64]!r}"
    return item["msg"].removeprefix("Value error, ")


def _hint(kind: str) -> str:
    if kind == "extra_forbidden":
        return "remove the field; it is none of a plan's"
    if kind == "missing":
        return "add the field"
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return "operations: " + ", ".join(OPERATIONS)
    if kind == "elements_kind":
        return "elements: " + ", ".join(ELEMENTS)
    return "give a value of the kind asked for"
