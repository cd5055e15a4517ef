"""`planner check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.given import Json, ModelOption

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.effects import CheckReport
    from planner.plan import Plan

PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="Plan file.")]
PolicyOption = Annotated[Path | None, typer.Option(help="TOML file with your limits.")]
AllowVoid = Annotated[bool, typer.Option("--allow-void", help="Accept modifications that change no stored bit.")]


def command(
    plan: PlanArgument,
    model: ModelOption,
    policy: PolicyOption = None,
    allow_void: AllowVoid = False,
    as_json: Json = False,
) -> int:
    """Everything wrong with a plan, and what each modification would do, exactly. Changes nothing."""
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, plan_at, policy_at, profiled
    from planner.effects import check
    from planner.errors import PlanRefused, StalePlan
    from planner.profile import histograms_of

    screen = Screen(as_json=as_json)
    read, limits = plan_at(plan), policy_at(policy)
    checkpoint = checkpoint_at(model)
    profile = profiled(checkpoint, screen)
    kept = histograms_of(profile)
    with screen.progress("previewing") as bar:
        report = check(read, checkpoint, profile, limits, allow_void=allow_void, histograms=kept, progress=bar.advance)
    screen.emit(report)
    show_report(read, report, screen)
    if report.accepted:
        screen.say(f"next: planner review {plan} --model {model}" if report.modifications else "nothing to apply")
        return 0
    stale = any(problem.code == "stale-plan" for problem in report.problems)
    return StalePlan.exit_status if stale else PlanRefused.exit_status


def show_report(plan: Plan, report: CheckReport, screen: Screen) -> None:
    """The previews as a table, then every problem."""
    operations = {modification.id: modification.operation for modification in plan.modifications}
    stale = any(problem.code == "stale-plan" for problem in report.problems)
    rows: list[tuple[str, ...]] = []
    for modification in report.modifications:
        rows.append((f"{modification.id}  {describe(operations[modification.id].model_dump())}", *[""] * 5))
        rows += [
            (
                f"  {tensor.name}",
                tensor.effect,
                f"{tensor.changed_fraction:.2%}",
                "-" if tensor.relative_change is None else f"{tensor.relative_change:.3g}",
                "-" if tensor.realised_scale is None else f"{tensor.realised_scale:.5f}",
                f"{_shown(tensor.before.abs_max)} -> {_shown(tensor.after.abs_max)}",
            )
            for tensor in modification.tensors
        ]
    if rows and not stale:  # what the plan would do to another checkpoint is of no interest
        headings = ("modification, tensor", "effect", "changed", "|dW|/|W|", "scale", "max|w|")
        screen.table(headings, rows, left=2, spare=("scale", "effect"))
    for problem in report.problems:
        screen.show(f"{problem.modification or 'plan'}: [{problem.code}] {problem.message}")
        screen.show(f"    {problem.hint}")
    count = len(report.problems)
    screen.show("accepted" if report.accepted else f"refused: {count} problem{'s' if count > 1 else ''}")
    if report.accepted and any(tensor.effect == "unknown" for tensor in report.tensors):
        screen.show("effect unknown: bits change; what that does to the model is for `planner evaluate` to measure")


def _shown(number: float | None) -> str:
    return "none finite" if number is None else f"{number:.3g}"


def describe(operation: dict[str, object]) -> str:
    """An operation in a few words: scale factor=1.02."""
    given = [
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in operation.items()
        if name != "kind" and value is not None
    ]
    return " ".join([str(operation["kind"]), *given])
