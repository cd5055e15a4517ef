"""Lists of patches in the style of Tensor Slayer, turned into modifications: every entry, or a problem that names it.

Such a list is a JSON array of objects: the name of a tensor, an operation, a value, a target, perhaps a confidence and
a reason. Its tools took an unknown target for the whole tensor and an unknown tensor for nothing at all; here both are
problems. Nothing is guessed: what the list does not say is said to be missing.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from pydantic import ValidationError

from planner import strict_json
from planner.errors import PlanInvalid
from planner.plan.elements import AllElements, Elements, MagnitudeQuantile, SignedQuantile
from planner.plan.nearest import nearest_hint
from planner.plan.problems import Problem, field_path
from planner.plan.types import AnalystRecord, CheckpointRef, Modification, Plan

__all__ = ["ImportedList", "QuantileOf", "new_plan", "read_patch_list"]

QuantileOf = Literal["magnitude", "signed"]

_LARGEST = 16 * 2**20
_MOST_ENTRIES = 10_000
_READ = {
    *("tensor", "tensor_name", "operation", "value", "target"),
    *("confidence", "reason", "reason_summary"),
}
# What the published list holds about itself, beside what it asks for.
_KNOWN = {"analysis_effect", "confidence_source"}
_SHARE = re.compile(r"(top|bottom)\s*(\d{1,3}(?:\.\d{1,9})?)\s*%")
_IMPACT = "The imported list does not say what should change; measure it with `planner evaluate`."


@dataclass(frozen=True)
class ImportedList:
    """What a list asks for."""

    modifications: tuple[Modification, ...]
    """One an entry, in its order."""
    note: str
    """What was not taken over, and what was missing; empty if nothing."""


class _Refused(ValueError):
    """Something about one entry. `code` and `hint` are those of the problem."""

    def __init__(self, message: str, *, hint: str, code: str = "plan-invalid") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


def read_patch_list(text: str, names: Sequence[str], *, top: QuantileOf | None = None) -> ImportedList:
    """The list in `text`, for a checkpoint whose tensors are called `names`.

    `top` says what a target such as `top 10%` is a share of: of the magnitudes or of the signed values. A confidence
    that was not published becomes 0, and the reasoning says so. Raises `PlanInvalid` with every problem of every entry.
    """
    entries = _entries(text)
    known = set(names)
    modifications: list[Modification] = []
    problems: list[Problem] = []
    for number, entry in enumerate(entries, start=1):
        found = _read(entry, f"m{number:0{max(2, len(str(len(entries))))}d}", names, known, top)
        if isinstance(found, Modification):
            modifications.append(found)
        else:
            problems += [_at(number, entry, problem) for problem in found]
    if problems:
        plural = "s" if len(problems) > 1 else ""
        raise PlanInvalid(
            f"the list has {len(problems)} problem{plural} in {len(entries)} entries; no plan was made",
            hint="correct the entries; nothing is left out silently",
            problems=tuple(map(str, problems)),
        )
    return ImportedList(tuple(modifications), _note(entries))


def new_plan(*, goal: str, name: str, fingerprint: str, found: ImportedList) -> Plan:
    """A plan with a new id for the checkpoint called `name`; its analyst is `imported`, and nobody has reviewed it."""
    now = datetime.now(UTC)
    return Plan(
        id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        created=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        goal=goal,
        checkpoint=CheckpointRef(name=name, fingerprint=fingerprint),
        analyst=AnalystRecord(kind="imported"),
        note=found.note,
        modifications=found.modifications,
    )


def _entries(text: str) -> list[Any]:
    try:
        entries = strict_json.loads(text, largest=_LARGEST)
    except strict_json.JsonRefused as error:
        raise PlanInvalid(f"the list is not sound JSON: {error}", hint=_WHAT_IS_ONE) from None
    if not isinstance(entries, list) or not entries:
        raise PlanInvalid("the list is not a JSON array with entries", hint=_WHAT_IS_ONE)
    if len(entries) > _MOST_ENTRIES:
        raise PlanInvalid(f"{len(entries):,} entries; at most {_MOST_ENTRIES:,} are read", hint="split the list")
    return entries


_WHAT_IS_ONE = 'a list is [{"tensor": NAME, "operation": "scale", "value": 1.02, "target": "all", ...}, ...]'


def _read(
    entry: Any, name: str, names: Sequence[str], known: set[str], top: QuantileOf | None
) -> Modification | list[_Refused]:
    """The modification that the entry asks for, or everything that is wrong with it."""
    if not isinstance(entry, dict):
        return [_Refused("it is not a JSON object", hint=_WHAT_IS_ONE)]
    refused: list[_Refused] = []

    def had(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except _Refused as error:
            refused.append(error)
            return None

    tensor = had(lambda: _tensor(entry, names, known))
    operation = had(lambda: _operation(entry))
    elements = had(lambda: _elements(entry.get("target"), top))
    confidence = had(lambda: _confidence(entry.get("confidence")))
    reasoning = had(lambda: _reasoning(entry))
    if refused:
        return refused
    try:
        return Modification.model_validate(
            {
                "id": name,
                "target": {"tensors": (tensor,), "elements": elements},
                "operation": operation,
                "reasoning": reasoning,
                "confidence": confidence,
                "expected_impact": _IMPACT,
            }
        )
    except ValidationError as error:
        return [
            _Refused(f"{field_path(item['loc'])}: {item['msg']}", hint="give a value of the kind asked for")
            for item in error.errors(include_url=False)
        ]


def _either(entry: dict[str, Any], *fields: str) -> Any:
    """The value of the one field of several names that is there; None if none is."""
    given = {field: entry[field] for field in fields if entry.get(field) is not None}
    if len(given) > 1 and len(set(map(repr, given.values()))) > 1:
        raise _Refused(f"{' and '.join(given)} say different things", hint="keep one of them")
    return next(iter(given.values()), None)


def _tensor(entry: dict[str, Any], names: Sequence[str], known: set[str]) -> str:
    tensor = _either(entry, "tensor", "tensor_name")
    if not isinstance(tensor, str) or not tensor:
        raise _Refused("it names no tensor", hint='"tensor": the full name, as in the checkpoint')
    if tensor not in known:
        raise _Refused(f"there is no tensor {tensor[:512]!r}", hint=nearest_hint(tensor, names), code="unknown-target")
    return tensor


def _operation(entry: dict[str, Any]) -> dict[str, Any]:
    """The operation as a plan writes it."""
    kind, value = entry.get("operation"), entry.get("value")
    if kind == "scale":
        return {"kind": "scale", "factor": _number(value)}
    if kind == "add":
        return {"kind": "shift", "offset": _number(value)}
    if kind == "clamp":
        low, high = _bounds(value)
        return {"kind": "clamp", "minimum": low, "maximum": high}
    if kind == "clamp_max":
        return {"kind": "clamp", "maximum": _number(value)}
    if kind == "clamp_min":
        return {"kind": "clamp", "minimum": _number(value)}
    if kind == "zero":
        if value not in (None, 0):
            raise _Refused(f"zero takes no value, and there is {value!r:.80}", hint="leave the value out")
        return {"kind": "zero"}
    if kind == "normalize":
        raise _Refused(
            "normalize means one thing in one such tool and another in the next (unit norm, unit deviation)",
            hint="write the modification into a plan by hand, with the operation that is meant",
        )
    raise _Refused(f"there is no operation {kind!r:.80}", hint=f"operations: {', '.join(_OPERATIONS)}")


_OPERATIONS = ("scale", "add", "clamp", "clamp_max", "clamp_min", "zero")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused(f"the value {value!r:.80} is not a number", hint="a number such as 1.02")
    return float(value)


def _bounds(value: Any) -> tuple[float | None, float | None]:
    """The bounds of a clamp: [low, high] or {"min": low, "max": high}, of which one may be null or missing."""
    if isinstance(value, dict) and value and value.keys() <= {"min", "max"}:
        low, high = value.get("min"), value.get("max")
    elif isinstance(value, list) and len(value) == 2:
        low, high = value
    else:
        raise _Refused(
            f"the bounds {value!r:.80} cannot be read", hint='write [low, high] or {"min": low, "max": high}'
        )
    return (None if low is None else _number(low)), (None if high is None else _number(high))


def _elements(target: Any, top: QuantileOf | None) -> Elements:
    if target in (None, "all"):
        return AllElements()
    share = _SHARE.fullmatch(target.strip().lower()) if isinstance(target, str) else None
    if share is None:
        raise _Refused(f"the target {target!r:.80} cannot be read", hint="all, top 10% or bottom 10%")
    part = Decimal(share[2]) / 100
    if not 0 < part < 1:
        raise _Refused(f"{target!r:.80} is none or all of the elements", hint="a share between 0 and 100 %")
    if top is None:
        raise _Refused(
            f"{target!r:.80} has two meanings: by magnitude |w| (farthest from zero) or by signed value w "
            "(most positive, as the tool itself takes it)",
            hint="say which with --top magnitude or --top signed",
        )
    chosen = MagnitudeQuantile if top == "magnitude" else SignedQuantile
    return chosen(above=float(1 - part)) if share[1] == "top" else chosen(below=float(part))


def _confidence(value: Any) -> float:
    if value is None:
        return 0.0
    confidence = _number(value)
    if not 0 <= confidence <= 1:
        raise _Refused(f"the confidence {confidence:g} is outside 0 to 1", hint="a number from 0 to 1, or null")
    return confidence


def _reasoning(entry: dict[str, Any]) -> str:
    reason = _either(entry, "reason", "reason_summary")
    if reason is not None and not isinstance(reason, str):
        raise _Refused(f"the reason {reason!r:.80} is not text", hint="a sentence, or null")
    said = [reason.strip() if reason and reason.strip() else "No reason was published."]
    if entry.get("confidence") is None:
        said.append("No confidence was published; the 0 stands for that.")
    return " ".join(sentence if sentence.endswith((".", "!", "?")) else f"{sentence}." for sentence in said)


def _at(number: int, entry: Any, refused: _Refused) -> Problem:
    name = (entry.get("tensor") or entry.get("tensor_name")) if isinstance(entry, dict) else None
    where = f"entry {number}" + (f" ({name[:200]})" if isinstance(name, str) else "")
    return Problem(modification=None, code=refused.code, message=f"{where}: {refused}", hint=refused.hint)


def _note(entries: Sequence[dict[str, Any]]) -> str:
    """What a person should know about what was not taken over."""
    count = len(entries)
    said = []
    if unconfident := sum(entry.get("confidence") is None for entry in entries):
        said.append(f"{unconfident} of {count} entries come without a confidence; theirs is recorded as 0.")
    if unreasoned := sum(not (entry.get("reason") or entry.get("reason_summary")) for entry in entries):
        said.append(f"{unreasoned} of {count} come without a reason.")
    others = Counter(field for entry in entries for field in entry if field not in _READ | _KNOWN)
    if others:
        listed = ", ".join(f"{field[:80]} (in {found})" for field, found in others.most_common(12))
        more = f" and {len(others) - 12} more" if len(others) > 12 else ""
        said.append(f"Fields that were not read: {listed}{more}.")
    return " ".join(said)
