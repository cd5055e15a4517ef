"""`planner check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json, ModelOption

if TYPE_CHECKING:
    from planner.plan import Plan, Policy

PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file.")]
PolicyOption = Annotated[Path | None, typer.Option(help="TOML file with your limits.")]
LimitsOption = Annotated[
    Path | None,
    typer.Option(help="TOML file with your limits. Default: $PLANNER_POLICY, else those that the plan records."),
]
EvidenceOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Evidence; default: the one the plan names, if it lies beside it.")
]
AllowVoid = Annotated[bool, typer.Option("--allow-void", help="Accept modifications that change no stored bit.")]


def command(
    plan: PlanArgument,
    model: ModelOption,
    policy: LimitsOption = None,
    evidence: EvidenceOption = None,
    allow_void: AllowVoid = False,
    every: Annotated[bool, typer.Option("--all", help="List every tensor of every modification.")] = False,
    as_json: Json = False,
) -> int:
    """Everything wrong with a plan, and what each modification does: exactly to the bytes, provably to the model.

    The environment variable PLANNER_POLICY names a policy file for check, review, apply and run, where --policy does
    not: no plan can choose weaker limits for itself.
    """
    from planner.cli.check_table import show_report
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, plan_at, profiled
    from planner.effects import check, known_evidence
    from planner.errors import PlanRefused, StalePlan
    from planner.profile import histograms_of
    from planner.transaction import with_budget

    screen = Screen(as_json=as_json)
    read = plan_at(plan)
    limits = limits_for(read, policy)
    known = known_evidence(evidence) if evidence else None
    checkpoint = checkpoint_at(model)
    profile = profiled(checkpoint, screen)
    kept = histograms_of(profile)
    with screen.progress("previewing") as bar:
        report = check(
            read,
            checkpoint,
            profile,
            limits,
            folder=plan.parent,
            allow_void=allow_void,
            histograms=kept,
            evidence=known,
            progress=bar.advance,
        )
    report = with_budget(report, checkpoint)
    screen.emit(report)
    show_report(read, report, screen, every=every)
    if report.accepted:
        given = f" --policy {policy}" if policy else ""
        screen.say(
            f"next: planner review {plan} --model {model}{given}" if report.modifications else "nothing to apply"
        )
        return 0
    stale = any(problem.code == "stale-plan" for problem in report.problems)
    return StalePlan.exit_status if stale else PlanRefused.exit_status


def limits_for(plan: Plan | None, given: Path | None) -> Policy:
    """The limits in force: of the policy file given, else of the operator's, else those the plan records."""
    from planner.cli.given import policy_at
    from planner.plan import OPERATORS_POLICY, limits_of

    operators = os.environ.get(OPERATORS_POLICY)
    path = given or (Path(operators) if operators else None)
    if plan is None:
        return policy_at(path)
    return limits_of(plan, policy_at(path) if path else None)
