"""From the choice of an analyst to a plan file, with what belongs to it beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from planner import fsio
from planner.analysts.base import Brief
from planner.analysts.choice import AnalystChoice
from planner.analysts.measured import MeasuredAnalyst, Study
from planner.analysts.panel import ask_panel
from planner.analysts.random_plan import RandomAnalyst
from planner.analysts.rules import RulesAnalyst
from planner.analysts.tuning import Tell
from planner.errors import NoValidPlan
from planner.inputs import read_text
from planner.plan import Plan, read_plan, write_plan

__all__ = ["factors_path", "propose_to"]


def factors_path(plan: Path) -> Path:
    """Where the factors of a plan go that has vectors of them: plan.factors.safetensors."""
    return plan.with_name(f"{plan.stem}.factors.safetensors")


def propose_to(
    out: Path,
    brief: Brief,
    choice: AnalystChoice,
    *,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
    study: Study | None = None,
    progress: Tell | None = None,
) -> Plan:
    """Ask the chosen analyst and write its plan to `out`; transcripts are written whatever becomes of it.

    With a `study` the rules work from evidence, and the factors of the plan are written beside it. Raises an
    `AnalystFailed`, what the clients raise before anything is sent, or what `MeasuredAnalyst` raises.
    """
    if choice.kind == "rules" and study is not None:
        return _from_evidence(out, brief, study, progress=progress)
    if choice.kind == "llm":
        plan = ask_panel(out, brief, choice, environment=environment, tell=tell)
    elif choice.like is not None:
        plan = RandomAnalyst(read_plan(read_text(Path(choice.like))), seed=choice.seed or 0).propose(brief)
    else:
        plan = RulesAnalyst().propose(replace(brief, evidence=None))
    fsio.replace_file(out, write_plan(plan))
    return plan


def _from_evidence(out: Path, brief: Brief, study: Study, *, progress: Tell | None) -> Plan:
    """The factors first, because the plan names their digest; without the plan they do not stay."""
    factors = factors_path(out)
    proposal = MeasuredAnalyst(study, tell=progress).propose(brief, arrays_file=factors.name)
    if proposal.arrays is not None:
        fsio.replace_file(factors, proposal.arrays)
    try:
        if problems := brief.check(proposal.plan).problems:
            raise NoValidPlan(
                f"the plan that the rules made from the evidence is refused: {problems[0].message}",
                problems=tuple(map(str, problems)),
                hint="allow more in the policy, or protect the tensors that are named",
            )
        fsio.replace_file(out, write_plan(proposal.plan))
    except BaseException:
        fsio.remove_file(factors)
        raise
    return proposal.plan
