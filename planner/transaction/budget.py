"""What is left of the budget that a checkpoint's patches share, told before a plan is applied.

How far a tensor will be from its original is measured on the way (`staging`), from the undo data. What is known without
them is how far it is now, c, and how far the plan moves it, r, each as part of a norm: ‖W - W₀‖ = c·‖W₀‖ and
‖W' - W‖ = r·‖W‖. So ‖W‖ lies between |1 - c| and 1 + c times ‖W₀‖, the step between r·|1 - c| and r·(1 + c), and the
way from W₀ to W' between the difference of c and the step, and their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from planner.checkpoint import Checkpoint
from planner.effects import CheckReport
from planner.errors import LedgerDamaged
from planner.plan import Problem
from planner.transaction.ledger import read_ledger
from planner.transaction.record import cumulative_changes

__all__ = ["reach", "with_budget"]

_ROUNDING = 1e-9
_MOST = 5
_HINT = "go back first (`planner revert MODEL`), or allow more with largest_cumulative_change in the policy"


def with_budget(report: CheckReport, checkpoint: Checkpoint) -> CheckReport:
    """The report, with what the plan and the patches in force come to together.

    A problem where even the least that it can be is beyond the policy: apply would refuse it. A warning where only the
    most is: apply measures it. Nothing where the ledger cannot be read, or is of other weights, which apply says.
    """
    limit = report.policy.cumulative_limit
    refused, open_ = [], []
    for name, least, most in _reaches(report, checkpoint):
        if least > limit * (1 + _ROUNDING):
            refused.append((name, least))
        elif most > limit * (1 + _ROUNDING):
            open_.append((name, most))
    problems, warnings = report.problems, report.warnings
    allowed = f"largest_cumulative_change = {limit:g}"
    if refused:
        said = _listed([f"{name}: {least:.3g} or more" for name, least in refused])
        message = f"with the patches in force it would go too far from the original, beyond {allowed} ({said})"
        problems = (Problem(modification=None, code="outside-policy", message=message, hint=_HINT), *problems)
    elif open_:
        said = _listed([f"{name}: {most:.3g} or less" for name, most in open_])
        warnings = (
            *warnings,
            f"with the patches in force it may go too far from the original, beyond {allowed} ({said}); "
            "apply measures that, and refuses it then",
        )
    return report.model_copy(
        update={"problems": problems, "warnings": warnings, "accepted": report.accepted and not refused}
    )


def reach(known: float, step: float) -> tuple[float, float]:
    """At least and at most how far from its original a tensor is that was moved by `known`, and is moved by `step`.

    `known` and the result are parts of the norm of the original, `step` of the norm that the tensor has now.
    """
    shortest, longest = step * abs(1 - known), step * (1 + known)
    return max(0.0, shortest - known, known - longest), known + longest


def _reaches(report: CheckReport, checkpoint: Checkpoint) -> Iterator[tuple[str, float, float]]:
    """Tensor, least and most, of every tensor that the plan moves by so much."""
    inherited: dict[str, float] = {}
    known: dict[str, float] = {}
    with suppress(LedgerDamaged):
        ledger = read_ledger(checkpoint.path)
        if ledger is not None and ledger.current.fingerprint != report.fingerprint:
            return
        if ledger is not None:
            known, inherited = cumulative_changes(checkpoint.path, ledger), ledger.inherited
    for tensor in report.tensors:
        if tensor.source == "new" or not tensor.changed_elements or tensor.relative_change is None:
            continue
        # What was known when this history began is an upper bound already, and apply adds to it.
        before = inherited.get(tensor.name, 0.0)
        own = (known.get(tensor.name, 0.0) - before) / (1 + before)
        least, most = (before + whole * (1 + before) for whole in reach(max(own, 0.0), tensor.relative_change))
        yield tensor.name, least, most


def _listed(said: Sequence[str]) -> str:
    more = f", and {len(said) - _MOST} more" if len(said) > _MOST else ""
    return ", ".join(said[:_MOST]) + more
