"""A plan that is checked against a checkpoint, and what it will do to it."""

from __future__ import annotations

from pathlib import Path

from planner.checkpoint import Checkpoint
from planner.edits import surroundings_of
from planner.effects import CheckReport, check, cited_by
from planner.errors import PlanRefused, StalePlan, VoidModification
from planner.plan import Modification, Plan, Policy
from planner.profile import Histograms, Profiled, histograms_of, outline_of
from planner.transaction.edits import edits_of
from planner.transaction.kept_arrays import keep_arrays
from planner.transaction.progress import Steps
from planner.transaction.work import Outcome, Work

__all__ = ["CheckedPlan", "stale"]


class CheckedPlan:
    """A plan that is checked against a checkpoint."""

    def __init__(
        self,
        plan: Plan,
        modifications: tuple[Modification, ...],
        policy: Policy,
        folder: Path,
        allow_void: bool,
        told: Steps,
    ) -> None:
        self.plan, self.policy, self.folder, self.told = plan, policy, folder, told
        self._modifications, self._allow_void = modifications, allow_void
        self.profile: Profiled
        self.histograms: Histograms
        self._outcomes: dict[str, Outcome]
        self._arrays: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint, as the profile has it."""
        return self.profile.fingerprint

    def work_on(self, checkpoint: Checkpoint) -> Work:
        """What the plan does to the checkpoint. Raises `StalePlan`, `PlanRefused` or `VoidModification`."""
        self.profile = _profile(self.plan, self._modifications, checkpoint, self.told)
        self.histograms = histograms_of(self.profile)
        chosen = self.plan.model_copy(update={"modifications": self._modifications, "review": {}, "approval": None})
        report = check(
            chosen,
            checkpoint,
            self.profile,
            self.policy,
            folder=self.folder,
            allow_void=self._allow_void,
            histograms=self.histograms,
        )
        _refuse_problems(report)
        # Of tens of thousands of tensors the report takes more memory than the bytes at work.
        self._outcomes = {
            found.name: Outcome(found.changed_elements > 0, found.relative_change) for found in report.tensors
        }
        self._arrays = {array.file: array.digest for checked in report.modifications for array in checked.arrays}
        del report
        return self.work_again(checkpoint)

    def work_again(self, checkpoint: Checkpoint) -> Work:
        """The same, of the same checkpoint under another name."""
        around = surroundings_of(checkpoint, self.folder, profile=self.profile, histograms=self.histograms)
        return Work.of(checkpoint, edits_of(self._modifications, around), self._outcomes)

    def keep_beside(self, records: Path) -> None:
        """Keep the arrays that the plan reads with the record of the patch."""
        keep_arrays(self._arrays, self.folder, records)

    def undo_bytes(self, work: Work) -> int:
        """At most how large the undo data become: what a table destroys is known from the histogram, no more."""
        undo = 0
        for name in work.changes.tensors:
            nbytes = work.checkpoint.tensors[name].nbytes
            known = self.profile.by_name.get(name)
            histogram = self.histograms.of(known) if known and name in work.codings else None
            exact = histogram is not None and histogram.exact
            undo += min(work.codings[name].residual_bytes(histogram.table), nbytes) if histogram and exact else nbytes
        return undo


def _profile(plan: Plan, modifications: tuple[Modification, ...], checkpoint: Checkpoint, told: Steps) -> Profiled:
    """The profile, in outline, of the checkpoint that the plan is for. Raises `StalePlan` if this is another one.

    A kept profile is found by the names and times of the files alone; what the weights really are is known when they
    have been read, before the commit.
    """
    whole = cited_by(modifications)
    profile = outline_of(checkpoint, whole=whole, progress=told.step("hashing"))
    if profile.fingerprint != plan.checkpoint.fingerprint:  # it may be of other bytes; the disk decides
        profile = outline_of(checkpoint, whole=whole, force=True, progress=told.step("hashing"))
    if profile.fingerprint != plan.checkpoint.fingerprint:
        raise stale(checkpoint.path, profile.fingerprint, plan)
    return profile


def stale(model: Path, found: str, plan: Plan) -> StalePlan:
    return StalePlan(
        f"{model} is {found[:19]}; the plan was made for {plan.checkpoint.fingerprint[:19]}",
        hint="propose a plan for the checkpoint as it is now: `planner propose`",
    )


def _refuse_problems(report: CheckReport) -> None:
    """Raise `PlanRefused`, or `VoidModification`, if the check found a problem."""
    if report.problems:
        only_void = all(problem.code == "void-modification" for problem in report.problems)
        refused = VoidModification if only_void else PlanRefused
        count = len(report.problems)
        raise refused(
            f"the plan has {count} problem{'s' if count > 1 else ''}",
            hint="see them all with their previews: `planner check PLAN --model MODEL`",
            problems=tuple(str(problem) for problem in report.problems),
        )
