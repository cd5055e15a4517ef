"""What `planner check` shows to people: the most consequential modifications first, then why each has its effect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.cli.console import Screen
    from planner.effects import CheckedModification, CheckedTensor, CheckReport
    from planner.evidence.prediction import PredictedChange, Prediction
    from planner.plan import Plan, Policy

__all__ = ["limits_in_words", "show_report"]

_RANK = (
    *("effective", "loader_dependent", "unknown", "rescales_logits", "shifts_logits"),
    *("invariant", "ignored", "void"),
)
"""Effects, the most consequential first."""
_IDLE = {"invariant": "INVARIANT", "ignored": "IGNORED", "void": "VOID"}
"""Those that change nothing of what the model computes, in the letters that say so."""
_MOST_TENSORS = 6
_MOST_IDS = 8
_MOSTLY = 0.5
_LAYER = re.compile(r"layer \d+")
_NUMBER = re.compile(r"(?<=[a-z]\.)\d+(?=\.[a-z])")


def show_report(plan: Plan, report: CheckReport, screen: Screen, *, every: bool = False) -> None:
    """The previews and effects as a table, the reasons, every problem. `every` lists every tensor."""
    stale = any(problem.code == "stale-plan" for problem in report.problems)
    if report.modifications and not stale:  # what the plan would do to another checkpoint is of no interest
        # The second column is the widest by far, so it is what is folded where room is short; an effect never is.
        headings = ("id", "operation, tensor", "effect", "changed", "|dW|/|W|", "scale", "max|w|")
        screen.table(headings, list(_rows(plan, report, every)), left=3, spare=("max|w|", "scale"))
        _show_reasons(report, screen)
        _show_whole(report, screen)
        if report.prediction:
            _show_prediction(report.prediction, screen)
    ungrounded = [checked.id for checked in report.modifications if not checked.grounded]
    if ungrounded and not stale:
        screen.prose(f"ungrounded, they cite no measured fact: {_listed(ungrounded)}", indent=0)
    for warning in report.warnings:
        screen.prose(f"warning: {warning}", indent=0)
    for problem in report.problems:
        screen.prose(f"{problem.modification or 'plan'}: [{problem.code}] {problem.message}", indent=0)
        screen.prose(problem.hint, indent=4)
    screen.prose(f"limits: {limits_in_words(report.policy)}", indent=0)
    count = len(report.problems)
    screen.show("accepted" if report.accepted else f"refused: {count} problem{'s' if count > 1 else ''}")


def _rows(plan: Plan, report: CheckReport, every: bool) -> Iterator[tuple[str, ...]]:
    from planner.plan.wording import described

    modifications = {modification.id: modification for modification in plan.modifications}
    for checked in sorted(report.modifications, key=_weight):
        said = described(modifications[checked.id])
        if len(checked.tensors) == 1:
            tensor = checked.tensors[0]
            yield (checked.id, f"{said}  {tensor.name}", *_figures(tensor, checked.effect))
            continue
        count = len(checked.tensors)
        yield (checked.id, f"{said}  {count:,} tensors", _IDLE.get(checked.effect, checked.effect), *[""] * 4)
        shown = checked.tensors if every or count <= _MOST_TENSORS + 1 else checked.tensors[:_MOST_TENSORS]
        for tensor in shown:
            yield ("", tensor.name, *_figures(tensor, tensor.effect))
        if len(shown) < count:
            yield ("", f"... and {count - len(shown):,} more (--all lists them)", *[""] * 5)


def _weight(checked: CheckedModification) -> tuple[int, float]:
    largest = max((t.relative_change if t.relative_change is not None else 1e9 for t in checked.tensors), default=0.0)
    return _RANK.index(checked.effect), -largest


def _figures(tensor: CheckedTensor, effect: str) -> tuple[str, ...]:
    return (
        "zeros added" if tensor.source == "new" and not tensor.changed_elements else _IDLE.get(effect, effect),
        f"{tensor.changed_fraction:.2%}",
        "-" if tensor.relative_change is None else f"{tensor.relative_change:.3g}",
        "-" if tensor.realised_scale is None else f"{tensor.realised_scale:.5f}",
        f"{_shown(tensor.before.abs_max)} -> {_shown(tensor.after.abs_max)}",
    )


def _shown(number: float | None) -> str:
    return "none finite" if number is None else f"{number:.3g}"


def _show_reasons(report: CheckReport, screen: Screen) -> None:
    """Each reason once, with the modifications it is of; reasons that differ by the layer alone are one."""
    reasons: dict[tuple[str, str], dict[str, str]] = {}
    for checked in sorted(report.modifications, key=_weight):
        key = (checked.effect, _NUMBER.sub("N", _LAYER.sub("layer N", checked.why)))
        reasons.setdefault(key, {})[checked.id] = checked.why
    for (effect, general), found in reasons.items():
        why = next(iter(found.values())) if len(found) == 1 else general
        screen.show(f"{effect}: {_listed(list(found))}")
        screen.prose(why, indent=4)
    for checked in report.modifications:
        for note in checked.notes:
            screen.prose(f"{checked.id}: {note}", indent=0)
    files: dict[str, dict[str, str]] = {}  # what a file says of itself is said once
    for checked in report.modifications:
        for array in checked.arrays:
            made = "; ".join(f"{key}: {value}" for key, value in array.metadata.items() if key != "format")
            said = f"{array.file}, {array.digest[:19]}{'; ' + made if made else ''}"
            files.setdefault(said, {}).setdefault(checked.id, array.array)
    for said, arrays in files.items():
        which = f"{next(iter(arrays.values()))} of " if len(arrays) == 1 else "arrays of "
        screen.prose(f"{_listed(list(arrays))}: {which}{said}", indent=0)


def _show_whole(report: CheckReport, screen: Screen) -> None:
    if len(report.modifications) > 1:
        screen.prose(f"the plan as a whole is {report.plan_effect}: {report.plan_why}", indent=0)
    if report.total_change is not None:
        screen.show(f"all weights together change by {report.total_change:.3g} of their norm")
    idle = sum(checked.effect in _IDLE for checked in report.modifications)
    if idle and report.plan_effect not in _IDLE:
        screen.show(f"{idle} of {len(report.modifications)} modifications change nothing that the model computes")


def _show_prediction(found: Prediction, screen: Screen) -> None:
    """What the evidence predicts, whether to believe it, which modifications are one edit."""
    screen.show(
        f"predicted from the evidence: loss {_nats(found.raw)} raw, {_nats(found.calibrated)} calibrated; "
        f"drift {found.drift:.2g}{'' if found.drift_se is None else f' ± {found.drift_se:.1g}'} nats a token"
    )
    screen.prose(("to be trusted: " if found.trusted else "NOT to be trusted: ") + found.why, indent=4)
    count = len(found.modifications)
    if count > 1:
        screen.show(f"    {count} modifications are {found.independent} different edits")
    for same in found.same:
        together = ", and together they cancel" if same in found.cancelling else ""
        screen.prose(f"the same edit, each time: {_listed(same)}{together}", indent=4)
    if found.temperature_share > _MOSTLY:
        screen.show(f"    {found.temperature_share:.0%} of it is what a change of temperature would do")
    if count > 1:
        ranked = sorted(found.modifications, key=lambda item: item.calibrated.difference)
        best = ", ".join(f"{item.id} {_nats(item.calibrated)}" for item in ranked[:3])
        screen.show(
            f"    calibrated, each by itself: best {best}; worst {ranked[-1].id} {_nats(ranked[-1].calibrated)}"
        )
    if found.not_predicted:
        screen.show(f"    not predicted: {_listed(list(found.not_predicted))}")
        screen.prose(next(iter(found.not_predicted.values())), indent=8)


def _nats(change: PredictedChange) -> str:
    return f"{change.difference:+.4g}" + ("" if change.se is None else f" ± {change.se:.1g}")


def _listed(ids: Sequence[str]) -> str:
    if len(ids) <= _MOST_IDS:
        return ", ".join(ids)
    return f"{', '.join(ids[: _MOST_IDS - 2])} ... {ids[-1]} ({len(ids)} modifications)"


def limits_in_words(policy: Policy) -> str:
    """Every limit of the policy, as one sentence."""
    from planner.operations import OPERATIONS

    operations = "all operations" if set(policy.operations) == set(OPERATIONS) else ", ".join(policy.operations)
    protected = f"protected {', '.join(policy.protected)}" if policy.protected else "nothing protected"
    refused = ", ".join(policy.refuse) or "no effect"
    return (
        f"{operations}; {protected}; a tensor changes by at most {policy.largest_relative_change:g} of its norm, all "
        f"together by {policy.largest_total_change:g}, all patches together by {policy.cumulative_limit:g}; "
        f"at most {policy.most_modifications} modifications and {policy.most_tensors:,} tensors; refused: {refused}"
        + ("; the approval must be signed" if policy.signed_approval else "")
    )
