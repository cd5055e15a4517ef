"""`planner check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.given import Json, ModelOption

PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file.")]
PolicyOption = Annotated[Path | None, typer.Option(help="TOML file with your limits.")]
EvidenceOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Evidence; default: the one the plan names, if it lies beside it.")
]
AllowVoid = Annotated[bool, typer.Option("--allow-void", help="Accept modifications that change no stored bit.")]


def command(
    plan: PlanArgument,
    model: ModelOption,
    policy: PolicyOption = None,
    evidence: EvidenceOption = None,
    allow_void: AllowVoid = False,
    every: Annotated[bool, typer.Option("--all", help="List every tensor of every modification.")] = False,
    as_json: Json = False,
) -> int:
    """Everything wrong with a plan, and what each modification does: exactly to the bytes, provably to the model."""
    from planner.cli.check_table import show_report
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, plan_at, policy_at, profiled
    from planner.effects import check, known_evidence
    from planner.errors import PlanRefused, StalePlan
    from planner.profile import histograms_of

    screen = Screen(as_json=as_json)
    read, limits = plan_at(plan), policy_at(policy)
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
    screen.emit(report)
    show_report(read, report, screen, every=every)
    if report.accepted:
        screen.say(f"next: planner review {plan} --model {model}" if report.modifications else "nothing to apply")
        if policy and report.modifications:
            screen.say(f"then give the policy to apply as well: --policy {policy}")
        return 0
    stale = any(problem.code == "stale-plan" for problem in report.problems)
    return StalePlan.exit_status if stale else PlanRefused.exit_status
