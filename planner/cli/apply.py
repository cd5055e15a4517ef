"""`planner apply`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli.check import AllowVoid, LimitsOption, PlanArgument
from planner.cli.given import Json, ModelOption
from planner.errors import OutputExists, PlanNotApproved, ReadOnly, ResultDiffers, UnsafeInPlace, UsageError

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.plan import Plan, Policy
    from planner.transaction import Receipt


def command(
    plan: PlanArgument,
    model: ModelOption,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the result to this new folder.")] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Change MODEL itself; revert undoes it.")] = False,
    low_space: Annotated[
        bool, typer.Option("--low-space", help="With --in-place: no second copy; MODEL has no name meanwhile.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Approve everything undecided, in your name.")] = False,
    policy: LimitsOption = None,
    approval_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Shared key that the approval was signed with.")
    ] = None,
    allow_void: AllowVoid = False,
    card: Annotated[
        bool | None,
        typer.Option("--card/--no-card", help="Whether README.md lists the modifications. Default: with --out."),
    ] = None,
    expect: Annotated[
        Path | None, typer.Option(metavar="RECEIPT", help="Refuse a result that is not the one of this receipt.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Apply the approved modifications as one transaction: all of them, or nothing.

    PLAN may also be a portable patch (`planner export-patch`), which needs neither arrays nor adapters beside it.

    What was approved is bound to the plan, the checkpoint and the policy of the review; if one of them is another now,
    nothing is applied. PLANNER_POLICY names the policy file of whoever runs this, where --policy does not.
    """
    from planner.checkpoint import locate
    from planner.cli.console import Screen
    from planner.transaction import is_portable

    if (out is None) != in_place:
        raise UsageError("say where the result goes", hint="--out DIR for a new checkpoint, or --in-place; not both")
    if low_space and out is not None:
        raise UsageError("--low-space is for --in-place", hint="leave it out: --out writes a new checkpoint")
    screen = Screen(as_json=as_json)
    place = _Place(locate(model), out.absolute() if out else None, low_space, card)
    with screen.change(place.out or place.model):
        try:
            if is_portable(plan):
                if yes or expect or allow_void:
                    raise UsageError(
                        "--yes, --expect and --allow-void are for plans",
                        hint="a portable patch is approved and exact as it is",
                    )
                receipt = _patched(plan, place, policy, approval_key, screen)
            else:
                receipt = _planned(
                    plan, place, policy, approval_key, screen, yes=yes, allow_void=allow_void, expect=expect
                )
        except (UnsafeInPlace, ReadOnly, OutputExists) as error:
            given = (("--policy", policy), ("--approval-key", approval_key), ("--expect", expect))
            flags = (("--yes", yes), ("--allow-void", allow_void), ("--card", card), ("--no-card", card is False))
            words = [word for name, value in given if value for word in (name, str(value))]
            words += [name for name, value in flags if value]
            taken = place.out if place.out and isinstance(error, OutputExists) else place.model
            error.hint = f"write {'elsewhere' if out else 'a copy'}: {_copying(plan, model, taken, words)}"
            raise
        screen.emit(receipt)
        show_receipt(receipt, screen)
        undo = f"planner revert {shlex.quote(str(place.out or place.model))}" + (" --low-space" if low_space else "")
        screen.say(f"take it back: {undo}")


@dataclass(frozen=True)
class _Place:
    """Where the result goes."""

    model: Path
    out: Path | None
    low_space: bool
    card: bool | None


def _planned(
    plan: Path,
    place: _Place,
    policy: Path | None,
    approval_key: Path | None,
    screen: Screen,
    *,
    yes: bool,
    allow_void: bool,
    expect: Path | None,
) -> Receipt:
    from planner.cli.check import limits_for
    from planner.cli.given import invoking_user, plan_at, receipt_at
    from planner.plan import require_decided, verify_approval
    from planner.signing import hmac_key
    from planner.transaction import apply_plan

    read, user = plan_at(plan), invoking_user()
    expected = receipt_at(expect) if expect else None
    limits = limits_for(read, policy)
    key = hmac_key(approval_key) if approval_key else None
    if yes:
        read = _all_approved(read, limits, user, screen)
    require_decided(read, limits)
    if signer := verify_approval(read, limits, approval_key=key):
        screen.say(f"approval signed by {signer}")
    with screen.progress("applying") as bar:
        receipt = apply_plan(
            read,
            place.model,
            out=place.out,
            policy=limits,
            by=user,
            folder=plan.parent,
            allow_void=allow_void,
            low_space=place.low_space,
            card=place.card,
            approval_key=key,
            expected=expected,
            progress=bar.step,
        )
        screen.made()
    return receipt


def _patched(path: Path, place: _Place, policy: Path | None, approval_key: Path | None, screen: Screen) -> Receipt:
    from planner.cli.check import limits_for
    from planner.cli.export_patch import signer_of
    from planner.cli.given import invoking_user
    from planner.transaction import PortablePatch, apply_patch
    from planner.transaction.portable.patch_file import damaged

    patch = PortablePatch(path)
    limits = limits_for(None, policy)
    signer = signer_of(path, limits, approval_key)
    screen.say(f"patch signed by {signer}" if signer else "the patch is not signed: its bytes are taken as they are")
    try:
        with screen.progress("applying") as bar:
            receipt = apply_patch(
                patch,
                place.model,
                out=place.out,
                policy=limits,
                by=invoking_user(),
                signed_by=signer,
                low_space=place.low_space,
                card=place.card,
                progress=bar.step,
            )
            screen.made()
    except ResultDiffers:  # from what the patch says of it: there is no receipt here
        raise damaged(f"{path}: the result is not the one that it names; nothing was changed") from None
    return receipt


def _copying(plan: Path, model: str, path: Path, options: list[str]) -> str:
    """The command that does the same to a copy, beside `path` if that is a place to write to."""
    from planner.transaction import free_name

    return shlex.join(["planner", "apply", str(plan), "--model", model, "--out", str(free_name(path)), *options])


def _all_approved(plan: Plan, limits: Policy, user: str, screen: Screen) -> Plan:
    """The plan with everything that was open approved by --yes; what that is goes to stderr."""
    from planner.plan import decide, reopened, undecided

    if limits.signed_approval:
        raise PlanNotApproved(
            "--yes is not enough: the policy asks for a signed approval",
            hint="sign a review: `planner review PLAN --model MODEL --approve all --sign KEY`",
        )
    reasons, names = reopened(plan, limits), [modification.id for modification in undecided(plan, limits)]
    if rejected := [name for name in names if name in reasons and plan.review[name].decision == "rejected"]:
        name = rejected[0]
        raise PlanNotApproved(
            f"--yes would overturn the rejection of {', '.join(rejected)} by {plan.review[name].reviewer}: "
            f"{reasons[name]}",
            hint="review what is there now: `planner review PLAN --model MODEL`",
        )
    if names:
        listed = ", ".join(f"{name} ({reasons[name]})" if name in reasons else name for name in names)
        screen.say(f"approved by --yes, in the name of {user}: {listed}")
        if plan.approval:
            screen.say("the signature of the approval does not cover that; it is dropped")
    return decide(plan, names, "approved", reviewer=user, comment="apply --yes", policy=limits, how="yes")


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
