"""`planner review`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from planner.cli.check import LimitsOption, PlanArgument, limits_for
from planner.cli.check_table import limits_in_words
from planner.cli.given import ModelOption, at_most
from planner.cli.propose import agreed_by
from planner.errors import AnswerNeeded, PlanNotApproved, StalePlan, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from planner.cli.console import Screen
    from planner.effects import CheckedModification, CheckReport
    from planner.plan import Modification, Plan, Policy

_MOST_TENSORS = 12
_ALL_BUT = "all but those that the other option names"
_EVERY = "all"
_KEYS = (
    "a: approve, and r: reject, each with a reason if you like; it is kept with the plan at once",
    "s: leave it undecided, and go on to the next",
    "q: stop here; what was decided is kept, and the next review asks about the rest",
)


def command(
    plan: PlanArgument,
    model: ModelOption,
    more: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="More ids for the flag given.")] = None,
    approve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID|all", help=f"Approve these; repeat, or use commas. all: {_ALL_BUT}, or somebody rejected."
        ),
    ] = None,
    reject: Annotated[
        list[str] | None,
        typer.Option(metavar="ID|all", help=f"Reject these; repeat, or use commas. all: {_ALL_BUT}, approved or not."),
    ] = None,
    why: Annotated[str, typer.Option(callback=at_most(2048), help="Why; kept with the decision.")] = "",
    reviewer: Annotated[str | None, typer.Option(callback=at_most(200), help="Who decides; default: you.")] = None,
    policy: LimitsOption = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY", help="Sign the approval: with an OpenSSH key, or a file of 32 or more secret bytes."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="PLAN", help="Write here instead of over the plan.")] = None,
) -> None:
    """Record decisions on a plan; without flags, ask about one modification at a time.

    Decisions are bound to the plan, the checkpoint and the policy as they are now; apply refuses anything else.
    PLANNER_POLICY names the policy file of whoever runs this, where --policy does not.
    """
    from planner import fsio
    from planner.cli.console import Screen
    from planner.cli.given import checkpoint_at, invoking_user, plan_at, profiled
    from planner.effects import check
    from planner.plan import decide, policy_digest, reopened, sign_approval, undecided, write_plan
    from planner.profile import histograms_of
    from planner.signing.keys import hmac_key, key_kind
    from planner.transaction import with_budget

    screen = Screen()
    if sign and key_kind(sign) != "ssh":  # before anything is decided
        hmac_key(sign)
    read = plan_at(plan)
    checkpoint = checkpoint_at(model)
    profile = profiled(checkpoint, screen)
    if profile.fingerprint != read.checkpoint.fingerprint:
        raise StalePlan(
            f"the plan was made for {read.checkpoint.fingerprint[:19]}; {model} is {profile.fingerprint[:19]}",
            hint="propose a plan for this checkpoint",
        )
    name, limits, was_signed = reviewer or invoking_user(), limits_for(read, policy), read.approval is not None
    before = read
    approved, rejected = _decisions(read, approve, reject, more or [])
    _present_analyst(read, screen)
    screen.say(f"limits, policy {policy_digest(limits)[:19]}: {limits_in_words(limits)}")
    if not approve and not reject:
        report = check(read, checkpoint, profile, limits, folder=plan.parent, histograms=histograms_of(profile))
        report = with_budget(report, checkpoint)
        for decided in _asked(read, report, limits, name, screen):
            read = decided
            fsio.replace_file(out or plan, write_plan(read))  # each decision, so that Ctrl-C loses none
    else:
        read = decide(read, approved, "approved", reviewer=name, comment=why, policy=limits)
        read = decide(read, rejected, "rejected", reviewer=name, comment=why, policy=limits)
    if sign:
        try:
            read = sign_approval(read, sign, limits)
        except PlanNotApproved:  # something is open; what was decided is kept all the same
            fsio.replace_file(out or plan, write_plan(read))
            raise
    if sign or approve or reject:
        fsio.replace_file(out or plan, write_plan(read))
    reasons = reopened(read, limits)
    for modification in read.modifications:
        screen.show(_standing(modification.id, read, reasons))
    if sign:
        screen.say(f"signed with {read.approval.signer if read.approval else sign}")
    elif was_signed and read.approval is None:
        screen.say("the approval was signed before this decision; the signature is dropped: sign again with --sign KEY")
    screen.say(f"wrote {out or plan}")
    if overturned := _overturned(before, read):
        screen.say(f"decided otherwise before: {', '.join(overturned)}")
    kept = [name for name in before.review if _is_rejected(before, name) and name not in (*approved, *rejected)]
    if kept and approve:
        screen.say(f"left rejected: {', '.join(kept)}; to approve them, name them")
    if not undecided(read, limits) and any(d.decision == "approved" for d in read.review.values()):
        _say_next(out or plan, model, read, limits, policy, screen, key=sign)


def _is_rejected(plan: Plan, name: str) -> bool:
    """Also where the plan was edited since, and the decision counts no more."""
    return name in plan.review and plan.review[name].decision == "rejected"


def _overturned(before: Plan, now: Plan) -> list[str]:
    """What somebody had decided otherwise."""
    return [
        f"{name} ({decision.decision} by {decision.reviewer})"
        for name, decision in before.review.items()
        if name in now.review and now.review[name].decision != decision.decision
    ]


def _say_next(
    plan: Path, model: str, read: Plan, limits: Policy, policy: Path | None, screen: Screen, *, key: Path | None
) -> None:
    """The command that comes next, as it has to be given: apply, or a signature where the policy asks for one."""
    given = ["--policy", str(policy)] if policy else []
    if limits.signed_approval and read.approval is None:
        words = ["planner", "review", str(plan), "--model", model, *given]
        screen.say(f"next, since the policy asks for a signature: {shlex.join(words)} --sign KEY")
        return
    words = ["planner", "apply", str(plan), "--model", model, "--out"]
    shared = read.approval is not None and read.approval.kind != "ssh"
    file = shlex.quote(str(key)) if key else "FILE"
    screen.say(f"next: {shlex.join(words)} DIR" + (f" --approval-key {file}" if shared else ""))


def _standing(name: str, plan: Plan, reasons: Mapping[str, str]) -> str:
    """Where the review of one modification stands."""
    decision = plan.review.get(name)
    if decision is None:
        return f"{name}  undecided"
    said = f"{decision.decision} by {decision.reviewer}"
    if name in reasons:
        return f"{name}  undecided: {said} before, but {reasons[name]}"
    return f"{name}  {said}" + (f": {decision.comment}" if decision.comment else "")


def _decisions(
    plan: Plan, approve: list[str] | None, reject: list[str] | None, more: list[str]
) -> tuple[list[str], list[str]]:
    """The ids to approve, and those to reject.

    To reject all is what it says. To approve all overturns no rejection: that is done by name.
    """
    if more and bool(approve) == bool(reject):
        raise UsageError(f"what about {' '.join(more)}?", hint="name ids after --approve or --reject; commas work too")
    approved, rejected = _ids(approve, more), _ids(reject, more)
    every = [modification.id for modification in plan.modifications]
    if approved == rejected == [_EVERY]:
        raise UsageError("all approved and all rejected at once", hint="decide for one, and name ids after the other")
    if approved == [_EVERY]:
        approved = [name for name in every if name not in rejected and not _is_rejected(plan, name)]
    elif rejected == [_EVERY]:
        rejected = [name for name in every if name not in approved]
    if both := set(approved) & set(rejected):
        raise UsageError(f"approved and rejected at once: {', '.join(sorted(both))}", hint="decide for one")
    return approved, rejected


def _ids(given: list[str] | None, more: Sequence[str]) -> list[str]:
    return [name for text in (*given, *more) for name in text.split(",") if name] if given else []


def _asked(plan: Plan, report: CheckReport, limits: Policy, reviewer: str, screen: Screen) -> Iterator[Plan]:
    """Ask about each undecided modification; gives the plan after each decision."""
    from planner.plan import decide, undecided

    waiting = undecided(plan, limits)
    if waiting and not sys.stdin.isatty():
        raise AnswerNeeded(
            f"{len(waiting)} of {len(plan.modifications)} modifications undecided, and nobody is there to ask",
            hint="decide with --approve ID... or --approve all, and --reject ID...",
        )
    if waiting and len(plan.modifications) > 1:
        screen.prose(f"the plan as a whole is {report.plan_effect}: {report.plan_why}", indent=0)
    if waiting:
        for warning in report.warnings:
            screen.prose(f"warning: {warning}", indent=0)
        for problem in report.problems:
            if problem.modification is None:
                screen.prose(f"problem of the plan: {problem}", indent=0)
    by = "the analyst" if plan.analyst.kind in ("llm", "rules") else plan.analyst.kind
    for modification in waiting:
        _present(modification, report, screen, by)
        for line in agreed_by(plan, modification.id):
            screen.prose(line, indent=2)
        answer = ""
        while answer not in {"a", "r", "s", "q"}:
            answer = typer.prompt("approve, reject, skip or quit? [a/r/s/q/?]", err=True)
            if answer == "?":
                for line in _KEYS:
                    screen.say(line)
        if answer == "q":
            break
        if answer != "s":
            decision: Literal["approved", "rejected"] = "approved" if answer == "a" else "rejected"
            comment = typer.prompt("why (may be empty)", default="", show_default=False, err=True)[:2048]
            plan = decide(plan, [modification.id], decision, reviewer=reviewer, comment=comment, policy=limits)
            yield plan


def _present_analyst(plan: Plan, screen: Screen) -> None:
    """How often this analyst was right, as far as that was measured, and what several could not agree on."""
    from planner.analysts import track_folder, track_record

    record = track_record(track_folder(), plan.analyst.kind, plan.analyst.model)
    if record.plans:
        screen.prose(record.sentence(), indent=0)
    for sentence in plan.disagreements:
        screen.prose(f"of several analysts: {sentence}", indent=0)


def _present(modification: Modification, report: CheckReport, screen: Screen, by: str) -> None:
    from planner.plan.wording import described

    screen.show()
    screen.show(f"{modification.id}  {described(modification)}")
    screen.prose(f"says {by} (confidence {modification.confidence:g}): {modification.reasoning}", indent=2)
    screen.prose(f"expects: {modification.expected_impact}", indent=2)
    if not modification.evidence:
        screen.show("  UNGROUNDED: it cites no measured fact")
    for cited in modification.evidence:
        screen.show(f"  cites: {cited.fact} = {_shown(cited.value)} of {cited.tensor}")
    for checked in report.modifications:
        if checked.id == modification.id:
            _present_checked(checked, screen)
    for problem in report.problems:
        if problem.modification == modification.id:
            screen.show(f"  problem: {problem}")


def _present_checked(checked: CheckedModification, screen: Screen) -> None:
    screen.prose(f"effect: {checked.effect}: {checked.why}", indent=2)
    for note in checked.notes:
        screen.show(f"  means: {note}")
    for array in checked.arrays:
        screen.show(f"  reads: {array.array} of {array.file}, {array.digest[:19]}")
    for tensor in checked.tensors[:_MOST_TENSORS]:
        change = "-" if tensor.relative_change is None else f"{tensor.relative_change:.3g}"
        screen.show(f"  measured: {tensor.name}: {tensor.changed_fraction:.2%} of elements change, |dW|/|W| {change}")
    if len(checked.tensors) > _MOST_TENSORS:
        screen.show(
            f"  ... and {len(checked.tensors) - _MOST_TENSORS:,} more tensors (`planner check --all` lists them)"
        )


def _shown(number: float | None) -> str:
    return "null" if number is None else f"{number:.6g}"
