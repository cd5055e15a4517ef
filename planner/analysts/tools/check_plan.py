"""check_plan: every problem of a draft, found as `planner check` finds it, before the draft is the answer."""

from __future__ import annotations

from typing import ClassVar

from planner.analysts.tools.base import Bench
from planner.analysts.tools.draft import Drafts, DraftTool, checked, problem_lines, proof
from planner.analysts.tools.figures import figure
from planner.records import Record

__all__ = ["CheckPlan"]


class CheckPlan(DraftTool[Drafts]):
    """Checks a draft of the whole plan: every problem that would refuse it, cited values included, the effect of each
    modification, the effect of all together, and how much changes."""

    name: ClassVar[str] = "check_plan"
    Arguments: ClassVar[type[Record]] = Drafts
    less: ClassVar[str] = "check fewer modifications"

    def run(self, arguments: Drafts, bench: Bench) -> str:
        """Problems, then effects."""
        found = checked(arguments.modifications, bench)
        report = found.report
        lines = [*problem_lines(found, bench, grounds=True)]
        lines.append(
            f"all together: {report.plan_effect}; {len(report.tensors)} tensors; relative change of the checkpoint "
            f"{figure(report.total_change)}"
        )
        lines += proof(report, report.plan_why, (), bench)
        for one in report.modifications:
            lines.append(f"{one.id}: {one.effect}, {len(one.tensors)} tensors")
            lines += proof(report, one.why, one.notes, bench)
        return "\n".join(lines)
