"""A draft of a plan in a tool's arguments, checked as the plan will be.

A model may leave out of a draft what only people need (reasons, confidence); what it does give is read as strictly as
the answer itself, so that a draft without problems is an answer without problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError

from planner.analysts.aliases import quoted
from planner.analysts.answer import read_modifications, sound_object
from planner.analysts.base import drafted
from planner.analysts.judging import refused_effects
from planner.analysts.tools.base import A, AgentTool, Bench, ToolRefused
from planner.analysts.wire import modification_schema
from planner.effects import CheckReport
from planner.plan import AnalystRecord, Modification, Plan, Policy, Problem, problems_of
from planner.records import Record

__all__ = ["Draft", "DraftTool", "Drafts", "checked", "problem_lines", "proof"]

_FILLED: dict[str, Any] = {"reasoning": "a draft", "confidence": 0.5, "expected_impact": "to be seen"}
_MOST = 100
_MOST_PROBLEMS = 40
_LONGEST = 600
_MOST_NOTES = 8

Draft = str | dict[str, Any]
"""A modification as JSON text, or as the object itself, which models write as often."""


class Drafts(Record):
    """Several modifications."""

    modifications: Annotated[tuple[Draft, ...], Field(min_length=1, max_length=_MOST)]
    """In their order, each with target and operation at least; the rest may be left out."""


@dataclass(frozen=True)
class Checked:
    """A draft with what was found of it."""

    plan: Plan
    report: CheckReport


class DraftTool(AgentTool[A]):
    """A tool whose arguments hold one `modification`, or `modifications`."""

    def parameters(self, bench: Bench) -> dict[str, Any]:
        """With modifications as the wire has them."""
        schema = super().parameters(bench)
        one = modification_schema()
        properties: dict[str, Any] = schema["properties"]
        if single := properties.get("modification"):
            properties["modification"] = one | {"description": f"{single['description']} {one['description']}"}
        if several := properties.get("modifications"):
            said = f"{several['description']} Each as preview_modification takes it."  # told once: it is long
            properties["modifications"] = {"type": "array", "items": {"type": one["type"]}, "description": said}
        return schema


def checked(drafts: Sequence[Draft], bench: Bench) -> Checked:
    """The drafts as a plan, checked. Raises `ToolRefused` with every problem where they cannot be read."""
    documents = [_filled(_sound(draft, place), place) for place, draft in enumerate(drafts, start=1)]
    found = read_modifications(documents, bench.aliases)
    if isinstance(found, list):
        raise ToolRefused("the draft cannot be read:\n" + _told(found, bench))
    plan = _planned(found, bench)
    return Checked(plan, bench.brief.check(plan))


def _planned(modifications: tuple[Modification, ...], bench: Bench) -> Plan:
    try:
        return drafted(bench.brief, AnalystRecord(kind="llm"), modifications)
    except ValidationError as error:  # an id that is used twice
        raise ToolRefused("the draft is no plan:\n" + _told(problems_of(error, None), bench)) from None


def _sound(draft: Draft, place: int) -> dict[str, Any]:
    found = sound_object(draft) if isinstance(draft, str) else draft
    if isinstance(found, Problem):
        raise ToolRefused(f"modification {place} cannot be read: {quoted(found.message, longest=_LONGEST)}")
    return found


def _filled(document: dict[str, Any], place: int) -> dict[str, Any]:
    given = {name: value for name, value in document.items() if value is not None}
    return {"id": f"d{place}"} | _FILLED | given


def problem_lines(found: Checked, bench: Bench, *, grounds: bool) -> Iterator[str]:
    """Every problem of a draft, those of its effects included; with `grounds`, what it cites as well."""
    report = found.report
    problems = [*report.problems, *_refused(report, bench.brief.policy)]
    if problems:
        yield f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:"
        yield _told(problems, bench)
    else:
        yield "no problem found"
    uncited = [modification.id for modification in found.plan.modifications if not modification.evidence]
    if grounds and uncited:
        yield f"no facts are cited by {', '.join(uncited)}; in the answer each modification cites at least one"
    for warning in report.warnings[:_MOST_NOTES]:
        yield f"warning: {_said(warning, report, bench)}"


def _refused(report: CheckReport, policy: Policy) -> Iterator[Problem]:
    """What does nothing, which `check` may let pass and an analyst's plan may not hold."""
    refused = [effect for effect in refused_effects(policy) if not policy.refuses(effect)]
    for one in report.modifications:
        if one.effect in refused and one.tensors:
            yield Problem(
                modification=one.id,
                code="no-effect",
                message=f"its effect is {one.effect}, which the plan may not hold",
                hint="drop it, or change what does reach the output",
            )
    alone = any(one.effect not in refused for one in report.modifications)
    if alone and report.plan_effect in refused:
        yield Problem(
            modification=None,
            code="no-effect",
            message=f"the draft as a whole is {report.plan_effect}, which the plan may not be",
            hint="drop the modifications that undo each other",
        )


def proof(report: CheckReport, why: str, notes: Sequence[str], bench: Bench) -> Iterator[str]:
    """The proof of an effect, and what the words of a modification were found to mean."""
    yield f"why: {_said(why, report, bench)}"
    for note in notes[:_MOST_NOTES]:
        yield f"note: {quoted(bench.told(note), longest=200)}"
    if len(notes) > _MOST_NOTES:
        yield f"{len(notes) - _MOST_NOTES} more notes are not shown"


def _said(text: str, report: CheckReport, bench: Bench) -> str:
    """A sentence of a proof; quoted where it may hold words of config.json, which say why the model is not known."""
    return bench.told(text) if report.model.known else quoted(bench.told(text), longest=_LONGEST)


def _told(problems: Sequence[Problem], bench: Bench) -> str:
    lines = [_shortened(" ".join(bench.told(str(problem)).split())) for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"{len(problems) - _MOST_PROBLEMS} more problems are not shown")
    return "\n".join(f"- {line}" for line in lines)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
