"""Whether an answer is a plan: read, drafted, checked, and everything that is wrong with it in one list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from planner.analysts.aliases import Aliases
from planner.analysts.answer import read_answer
from planner.analysts.base import Brief
from planner.effects import CheckReport
from planner.plan import Modification, Plan, Policy, Problem, problems_of

__all__ = ["UNGROUNDED", "Judged", "judged", "refused_effects", "rescued"]

UNGROUNDED = "ungrounded"
"""Code of the one problem that does not refuse a modification in the end: it is kept, and marked."""
_IDLE = ("void", "ignored", "invariant")


@dataclass(frozen=True)
class Judged:
    """What was found of one answer."""

    plan: Plan | None
    """The plan that its readable modifications make; None where there is none to speak of."""
    problems: tuple[Problem, ...]
    """Everything that is wrong with it."""

    @property
    def acceptable(self) -> bool:
        """Whether nothing is wrong but that it cites nothing."""
        return self.plan is not None and all(problem.code == UNGROUNDED for problem in self.problems)


def refused_effects(policy: Policy) -> tuple[str, ...]:
    """The effects that a model's plan may not have: those of the policy, else every one that does nothing.

    The policy's default refuses `void` alone, because people may want a change that is invariant by design; an analyst
    that is asked for an improvement never does, unless the user's own policy says what is refused.
    """
    if "refuse" in policy.model_fields_set or policy.allow_void:
        return tuple(policy.refuse)
    return tuple(dict.fromkeys((*policy.refuse, *_IDLE)))


def judged(text: str, brief: Brief, aliases: Aliases, empty: Plan) -> Judged:
    """What an answer is worth. `empty` is the plan without modifications; none of the problems is raised."""
    answer = read_answer(text, aliases)
    note = _one_line(answer.note)
    problems = list(answer.problems)
    try:
        plan = Plan.model_validate(
            empty.model_dump() | {"note": note, "modifications": [m.model_dump() for m in answer.modifications]}
        )
    except ValidationError as error:  # what only the plan as a whole can break, such as an id used twice
        return Judged(None, (*problems, *problems_of(error, None)))
    if problems and not plan.modifications:
        return Judged(None, tuple(problems))
    report = brief.check(plan)
    plan = _marked(plan)
    problems += [*report.problems, *_idle(report, brief.policy), *_ungrounded(plan)]
    return Judged(plan, tuple(problems))


def rescued(found: Judged, brief: Brief) -> tuple[Plan, int] | None:
    """The modifications of an answer that nothing is wrong with, and how many were left out; None if all were."""
    plan = found.plan
    if plan is None:
        return None
    kept: tuple[Modification, ...] = plan.modifications
    while kept:
        draft = plan.model_copy(update={"modifications": kept, "ungrounded": ()})
        report = brief.check(draft)
        problems = (*report.problems, *_idle(report, brief.policy))
        if not problems:
            dropped = len(plan.modifications) - len(kept) + _unreadable(found.problems, plan)
            return _marked(draft), dropped
        at_fault = {problem.modification for problem in problems}
        better = tuple(m for m in kept if m.id not in at_fault)
        # Where it is the plan as a whole, the last ones go: a model names first what it is surest of.
        kept = better if len(better) < len(kept) else kept[: min(len(kept) - 1, brief.policy.most_modifications)]
    return None


def _unreadable(problems: Sequence[Problem], plan: Plan) -> int:
    there = {m.id for m in plan.modifications}
    return len({p.modification for p in problems if p.code == "plan-invalid" and p.modification not in there})


def _idle(report: CheckReport, policy: Policy) -> Iterator[Problem]:
    """Modifications that provably do nothing, and a plan whose modifications undo one another."""
    told = {problem.modification for problem in report.problems}
    refused = refused_effects(policy)
    for checked in report.modifications:
        if checked.effect in refused and checked.id not in told and checked.tensors:
            yield Problem(
                modification=checked.id,
                code="no-effect",
                message=f"its effect is {checked.effect}: {checked.why}",
                hint="drop it, or change what does reach the output",
            )
    alone = any(checked.effect not in refused for checked in report.modifications)
    if alone and report.plan_effect in refused and not report.problems:
        yield Problem(
            modification=None,
            code="no-effect",
            message=f"the plan as a whole is {report.plan_effect}: {report.plan_why}",
            hint="drop the modifications that undo each other",
        )


def _marked(plan: Plan) -> Plan:
    """The plan with the modifications named that cite nothing."""
    return plan.model_copy(update={"ungrounded": tuple(m.id for m in plan.modifications if not m.evidence)})


def _ungrounded(plan: Plan) -> Iterator[Problem]:
    for name in plan.ungrounded:
        yield Problem(
            modification=name,
            code=UNGROUNDED,
            message="it cites no measured fact",
            hint="cite at least one fact that was shown to you, with its value; otherwise it is marked so",
        )


def _one_line(note: str) -> str:
    """A model's sentence, safe to show in a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in note).split())[:1000]
