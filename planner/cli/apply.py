"""`planner apply`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.check import AllowVoid, PlanArgument, PolicyOption
from planner.cli.given import Json, ModelOption
from planner.errors import UsageError

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.transaction import Receipt


def command(
    plan: PlanArgument,
    model: ModelOption,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the result to this new folder.")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Change MODEL itself; revert undoes it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Approve everything undecided, in your name.")] = False,
    policy: PolicyOption = None,
    allow_void: AllowVoid = False,
    as_json: Json = False,
) -> None:
    """Apply the approved modifications as one transaction: all of them, or nothing."""
    from planner.checkpoint import locate
    from planner.cli.console import Screen
    from planner.cli.given import invoking_user, plan_at, policy_at
    from planner.plan import decide, undecided
    from planner.transaction import apply_plan

    if (out is None) != in_place:
        raise UsageError("say where the result goes", hint="--out DIR for a new checkpoint, or --in-place; not both")
    screen = Screen(as_json=as_json)
    read, limits, user = plan_at(plan), policy_at(policy), invoking_user()
    if yes:
        read = decide(read, [m.id for m in undecided(read)], "approved", reviewer=user, comment="apply --yes")
    with screen.progress("applying") as bar:
        receipt = apply_plan(
            read,
            locate(model),
            out=out.absolute() if out else None,
            policy=limits,
            by=user,
            folder=plan.parent,
            allow_void=allow_void,
            progress=bar.step,
        )
    screen.emit(receipt)
    show_receipt(receipt, screen)
    screen.say(f"take it back: planner revert {receipt.path}")


def show_receipt(receipt: Receipt, screen: Screen) -> None:
    """What was changed, tensor by tensor."""
    rows = [
        (
            ",".join(tensor.modifications),
            tensor.name,
            f"{tensor.changed_elements:,} of {tensor.elements:,}",
            "-" if tensor.relative_change is None else f"{tensor.relative_change:.3g}",
            f"{tensor.before[7:15] if tensor.before else 'new'} -> {tensor.after[7:15]}",
        )
        for tensor in receipt.tensors
    ]
    screen.table(("by", "tensor", "elements changed", "|dW|/|W|", "digest"), rows, left=2, spare=("digest",))
    screen.show(f"patch {receipt.patch} is in force on {receipt.path}")
    screen.show(f"before  {receipt.fingerprint_before}")
    screen.show(f"after   {receipt.fingerprint_after}")
