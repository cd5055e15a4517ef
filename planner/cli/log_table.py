"""What `planner log` shows to people: the history as a table, and one patch whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.plan import Plan
    from planner.transaction import Event, Ledger, Receipt
    from planner.transaction.types import EvaluationSummary

__all__ = ["approvals", "show_history", "show_patch", "verdict"]

_NARROW = 132
_LONGEST_GOAL = 14


def show_history(ledger: Ledger, screen: Screen) -> None:
    """One line an event, and what is in force."""
    if ledger.parent:
        screen.show(f"made from {ledger.parent.name}, {ledger.parent.fingerprint}")
    last = {event.patch: event.evaluation for event in ledger.events if event.evaluation}
    rows = [_row(event, last.get(event.patch), narrow=screen.width < _NARROW) for event in ledger.events]
    screen.table(
        ("when", "who", "what", "goal", "evaluation", "approved by", "plan", "tensors", "elements", "change", "digest"),
        rows,
        left=7,
        spare=("plan", "elements", "digest", "approved by", "tensors", "goal"),
    )
    screen.prose(
        "change: the largest |W - W0|/|W0| of any tensor against the original, all patches in force together", indent=0
    )
    screen.show("in force: " + (", ".join(map(str, ledger.in_force)) or "no patch; this is the original"))


def show_patch(plan: Plan, receipt: Receipt, events: Sequence[Event], screen: Screen, *, in_force: bool) -> None:
    """The plan, every modification with its reasoning, the tensors, the approvals, the evaluations, the undo data."""
    applied = next(event for event in events if event.kind == "applied")
    state = "in force" if in_force else "taken back"
    screen.show(
        f"patch {receipt.patch}, {state}: applied {receipt.at} by {receipt.by}, planner {receipt.planner_version}"
    )
    analyst = plan.analyst.kind + (f", {plan.analyst.model}" if plan.analyst.model else "")
    screen.prose(f"goal: {plan.goal}", indent=0)
    screen.show(f"plan {plan.id} by {analyst}, {receipt.plan_digest}")
    screen.show(f"before  {receipt.fingerprint_before}")
    screen.show(f"after   {receipt.fingerprint_after}")
    said = approvals(applied)
    if said:
        signed = f"; signed by {receipt.signed_by}" if receipt.signed_by else ""
        screen.show(f"approved by {said}{signed}")
    _show_modifications(plan, receipt, screen)
    _show_tensors(receipt, screen)
    screen.show(_undo(receipt))
    for event in events:
        if event.evaluation:
            _show_evaluation(event, event.evaluation, screen)


def approvals(event: Event) -> str:
    """Who approved what was applied, and whether it was read first."""
    names = [*event.approved_by, *(["--yes"] if event.approved_by_flag else [])]
    return ", ".join(names)


def verdict(found: EvaluationSummary) -> str:
    """What an evaluation came to, in a few words: accepted: stories improved."""
    decision = {True: "accepted", False: "refused", None: "no gate"}[found.accepted]
    words = []
    for finding in found.findings:
        head = finding.split("; ")[0].split(": ")
        said = head[-1].split(" (")[0]  # without the reason, which --patch gives
        words.append(f"{head[0]} {said}" if len(head) > 2 else finding)
    return f"{decision}: {', '.join(words)}" if words else decision


def _row(event: Event, last: EvaluationSummary | None, *, narrow: bool) -> tuple[str, ...]:
    applied = event.kind == "applied"
    found = event.evaluation or (last if applied else None)
    goal = event.goal or ""
    what = {"applied": f"applied {event.patch}", "reverted": f"reverted to {event.patch}"}
    change = event.largest_change
    return (
        event.at[:16].replace("T", " ") if narrow else event.at,
        event.by,
        what.get(event.kind, f"evaluated {event.patch}"),
        goal[:_LONGEST_GOAL].rstrip() + "..." if narrow and len(goal) > _LONGEST_GOAL else goal,
        (verdict(found).partition(":")[0] if narrow else verdict(found)) if found else "",
        approvals(event) + (", signed" if event.signed_by else ""),
        event.plan or "",
        f"{event.changed_tensors:,}" if applied else "",
        f"{event.changed_elements:,}" if applied else "",
        f"{change:.3g}" if change is not None else "",
        event.fingerprint[7:19],
    )


def _show_modifications(plan: Plan, receipt: Receipt, screen: Screen) -> None:
    from planner.plan.wording import described, target_in_words

    for one in plan.modifications:
        if one.id not in receipt.modifications:
            decision = plan.review.get(one.id)
            why = f": {decision.comment}" if decision and decision.comment else ""
            screen.prose(f"{one.id}  rejected{why}", indent=0)
            continue
        screen.prose(f"{one.id}  {described(one)} of {target_in_words(one.target)}", indent=0)
        screen.prose(f"confidence {one.confidence:g}: {one.reasoning}", indent=4)
        screen.prose(f"expected: {one.expected_impact}", indent=4)
        if one.id in receipt.approvals:
            screen.prose(f"approved by {receipt.approvals[one.id]}", indent=4)


def _show_tensors(receipt: Receipt, screen: Screen) -> None:
    rows = [
        (
            tensor.name,
            ",".join(tensor.modifications),
            f"{tensor.changed_elements:,} of {tensor.elements:,}",
            "-" if tensor.relative_change is None else f"{tensor.relative_change:.3g}",
            "-" if tensor.cumulative_change is None else f"{tensor.cumulative_change:.3g}",
        )
        for tensor in receipt.tensors
    ]
    headings = ("tensor", "by", "elements changed", "|dW|/|W|", "|W-W0|/|W0|")
    screen.table(headings, rows, left=2, spare=("|W-W0|/|W0|", "by"))


def _undo(receipt: Receipt) -> str:
    if not receipt.changed_bytes:
        return f"undo data: {receipt.undo_bytes:,} bytes"
    share = receipt.undo_bytes / receipt.changed_bytes
    return f"undo data: {receipt.undo_bytes:,} bytes, {share:.2%} of the {receipt.changed_bytes:,} bytes of the tensors"


def _show_evaluation(event: Event, found: EvaluationSummary, screen: Screen) -> None:
    decision = {True: "accepted", False: "refused by a gate", None: "no gate"}[found.accepted]
    screen.show(f"evaluated {event.at} by {event.by} on suite {found.suite} against {found.baseline[:19]}: {decision}")
    for finding in found.findings:
        screen.prose(finding, indent=4)
    screen.show(f"    in full: {found.file}")
