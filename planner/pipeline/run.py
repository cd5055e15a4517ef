"""The whole story, unattended: profile, probe, propose, check, review by a rule, apply, evaluate, gate, keep or revert.

Every step writes one file into the run folder, atomically. A step whose file is there is not done again, so a run that
was stopped goes on where it was. The model itself is only read; the candidate is a folder of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from planner import fsio
from planner.analysts import Brief, Study, propose_to, record_evaluation, track_folder
from planner.architecture import map_of
from planner.checkpoint import Checkpoint, locate, open_checkpoint
from planner.effects import CheckReport, Known, check, fitted_to, known_evidence
from planner.errors import GateRefused, Locked, PipelineInvalid, PlanNotApproved, StalePlan, StorageError
from planner.evaluation import Evaluation, Side, Wanted, evaluate, load_suite, with_foretold
from planner.evidence import write_evidence
from planner.inference import require_torch
from planner.inputs import read_text
from planner.pipeline.definition import Pipeline, ReviewRule, Started
from planner.pipeline.outcome import Outcome
from planner.plan import OPERATORS_POLICY, Plan, Policy, decide, read_plan, read_policy, write_plan
from planner.probes import ProbeRequest, probe
from planner.profile import Profile, histograms_of, profile_of
from planner.profile.store import cache_folder
from planner.records import Record
from planner.transaction import RECEIPT, Receipt, apply_plan, patch_folder, revert
from planner.transaction.evaluated import record_evaluation as record_in_ledger

__all__ = ["FILES", "Watcher", "run"]

FILES = (
    "started.json",
    "profile.json",
    "evidence.json",
    "plan.json",
    "check.json",
    "reviewed.json",
    "receipt.json",
    "evaluation.json",
    "outcome.json",
)
CANDIDATE = "candidate"
_R = TypeVar("_R", bound=Record)


class Bar(Protocol):
    """Progress of one step."""

    def advance(self, count: int) -> None:
        """So many bytes more are done."""

    def step(self, what: str, done: int, total: int) -> None:
        """This is being done, and so many of so many bytes are."""

    def set(self, done: int, total: int) -> None:
        """So many of so many tokens are done."""


class Watcher(Protocol):
    """Who is told what happens."""

    def say(self, text: str) -> None:
        """A line for people."""

    def progress(self, what: str, total: int | None = None, *, unit: str = "bytes") -> AbstractContextManager[Bar]:
        """A progress bar for one step."""


def run(pipeline: Pipeline, origin: Path, folder: Path, *, environment: Mapping[str, str], watcher: Watcher) -> Outcome:
    """Run `pipeline`, whose file is in the folder `origin`, in the run folder `folder`; or finish what is there.

    Raises what the steps raise; a gate's refusal is an outcome, not an error.
    """
    story = _Run(pipeline, origin, folder, environment, watcher)
    fsio.ensure_folder(folder)
    with fsio.lock(folder.absolute().with_name(f".{folder.name}.planner-lock")):
        return _told(story, pipeline, folder, watcher)


def _told(story: _Run, pipeline: Pipeline, folder: Path, watcher: Watcher) -> Outcome:
    story.begin()
    if (folder / "outcome.json").is_file():
        watcher.say(f"{folder} is finished; this is what it found")
        return Outcome.model_validate_json(read_text(folder / "outcome.json"))
    profile = story.profile()
    known = story.evidence(profile)
    plan = story.plan(profile, known)
    if not plan.modifications:
        return story.outcome(profile, "nothing proposed", "the analyst proposes no modification", 0)
    report = story.check(plan, profile)
    reviewed = story.review(plan, report)
    if not any(decision.decision == "approved" for decision in reviewed.review.values()):
        return story.outcome(
            profile, "nothing approved", f"{pipeline.review} approves none", PlanNotApproved.exit_status
        )
    receipt = story.apply(reviewed)
    evaluation = story.evaluate(profile, reviewed, receipt, known)
    if evaluation.accepted:
        return story.outcome(profile, "kept", _reasons(evaluation, passed=True), 0, receipt)
    story.revert(profile)
    return story.outcome(profile, "reverted", _reasons(evaluation, passed=False), GateRefused.exit_status, receipt)


def _reasons(evaluation: Evaluation, *, passed: bool) -> str:
    reasons = [f"{gate.name}: {gate.why}" for gate in evaluation.gates if gate.passed is passed]
    return "; ".join(reasons) or "the suite has no gate"


class _Run:
    """One run folder and the steps that fill it."""

    def __init__(
        self, pipeline: Pipeline, origin: Path, folder: Path, environment: Mapping[str, str], watcher: Watcher
    ) -> None:
        self._pipeline = pipeline
        self._origin = origin
        self._folder = folder
        self._environment = environment
        self._watcher = watcher
        require_torch()  # the evaluation needs it; better to hear so before the work than after
        nearby = origin / pipeline.model
        self._model = locate(str(nearby) if nearby.exists() else pipeline.model)
        self._checkpoint: Checkpoint = open_checkpoint(self._model)
        self._suite = load_suite(origin / pipeline.suite)  # before any work: a typing error must not cost an hour
        self._policy = _policy_of(pipeline, origin, environment)
        self._candidate = folder / CANDIDATE
        tuning = pipeline.tune.suite
        self._tuning = load_suite(origin / tuning) if tuning and pipeline.probe else None

    def begin(self) -> None:
        """Note what the run is started with, or see that it is what the run in this folder was started with."""
        now = Started(
            pipeline=self._pipeline,
            policy=self._policy,
            suite=self._suite.digest,
            texts={text.name: text.digest for text in self._suite.texts},
            tuning=self._tuning.digest if self._tuning else None,
        )
        if self._step("started.json", lambda: now, Started.model_validate_json) != now:
            raise PipelineInvalid(
                f"the run in {self._folder} was started with another pipeline, policy, suite or text",
                hint="start a new run: --fresh",
            )

    def profile(self) -> Profile:
        with self._watcher.progress("profiling", self._checkpoint.nbytes) as bar:
            found = profile_of(self._checkpoint, progress=bar.advance)
        kept = self._step("profile.json", lambda: found, Profile.model_validate_json)
        if kept.fingerprint != found.fingerprint:
            raise StalePlan(
                f"{self._model} is not the checkpoint that the run in {self._folder} started with",
                hint="start a new run: --fresh",
            )
        return kept

    def evidence(self, profile: Profile) -> Known | None:
        """What the pipeline wants measured, or what was measured already."""
        rule = self._pipeline.probe
        if rule is None:
            return None
        path = self._folder / "evidence.json"
        if not path.is_file():
            request = rule.model_dump(exclude={"text", "goal_text", "against", "choices"}) | {
                name: self._origin / value
                for name in ("text", "goal_text", "against", "choices")
                if (value := getattr(rule, name)) is not None
            }
            with self._watcher.progress("probing", unit="tokens") as bar:
                found = probe(
                    self._checkpoint,
                    profile.fingerprint,
                    ProbeRequest(**request),
                    cache=cache_folder(self._environment),
                    progress=bar.step,
                )
            write_evidence(path, found.evidence, found.arrays())
            found.discard()
            self._watcher.say(f"wrote {path}")
        return known_evidence(path)

    def plan(self, profile: Profile, known: Known | None) -> Plan:
        path = self._folder / "plan.json"
        if not path.is_file():
            self._watcher.say(f"proposing: {self._pipeline.analyst.kind}")
            brief = Brief(
                goal=self._pipeline.goal,
                profile=profile,
                policy=self._policy,
                check=lambda plan: self._checked(plan, profile, known),
                checkpoint=self._checkpoint,
                model=map_of(self._checkpoint.config, {n: t.shape for n, t in self._checkpoint.tensors.items()}),
                histograms=histograms_of(profile),
                evidence=known,
                evidence_file="evidence.json" if known else None,
            )
            analyst = self._pipeline.analyst
            if analyst.like:
                analyst = analyst.model_copy(update={"like": str(self._origin / analyst.like)})
            study = self._study(known) if known and self._pipeline.analyst.kind == "rules" else None
            with self._watcher.progress("proposing", unit="tokens") as bar:
                proposed = propose_to(
                    path,
                    brief,
                    analyst,
                    environment=self._environment,
                    tell=self._watcher.say,
                    study=study,
                    progress=bar.step,
                )
            self._watcher.say(proposed.note)
        return read_plan(read_text(path))

    def _study(self, known: Known) -> Study:
        rule = self._pipeline.tune
        return Study(
            checkpoint=self._checkpoint,
            path=self._folder / "evidence.json",
            evidence=known[0],
            measured=known[1],
            suite=self._tuning,
            budget=rule.budget,
            most=rule.most,
            drift_weight=rule.drift_weight,
        )

    def check(self, plan: Plan, profile: Profile) -> CheckReport:
        return self._step(
            "check.json",
            lambda: self._checked(plan, profile),
            CheckReport.model_validate_json,
        )

    def _checked(self, plan: Plan, profile: Profile, known: Known | None = None) -> CheckReport:
        return check(
            plan,
            self._checkpoint,
            profile,
            self._policy,
            folder=self._folder,
            histograms=histograms_of(profile),
            evidence=known,
        )

    def review(self, plan: Plan, report: CheckReport) -> Plan:
        path = self._folder / "reviewed.json"
        if not path.is_file():
            fsio.replace_file(path, write_plan(_reviewed(plan, report, self._pipeline.review, self._policy)))
            self._watcher.say(f"wrote {path}: reviewed by {self._pipeline.review}")
        reviewed = read_plan(read_text(path))
        count = sum(decision.decision == "approved" for decision in reviewed.review.values())
        self._watcher.say(f"{count} of {len(reviewed.modifications)} modifications approved")
        for name, decision in reviewed.review.items():
            if decision.decision == "rejected":
                self._watcher.say(f"rejected {name}: {decision.comment}")
        return reviewed

    def apply(self, reviewed: Plan) -> Receipt:
        def applied() -> Receipt:
            if self._candidate.is_dir():  # stopped between the switch and the copy of the receipt
                return Receipt.model_validate_json(read_text(patch_folder(self._candidate, 1) / RECEIPT))
            with self._watcher.progress("applying") as bar:
                return apply_plan(
                    reviewed,
                    self._model,
                    out=self._candidate.absolute(),
                    policy=self._policy,
                    by=str(self._pipeline.review),
                    folder=self._folder,
                    progress=bar.step,
                )

        return self._step("receipt.json", applied, Receipt.model_validate_json)

    def evaluate(self, profile: Profile, reviewed: Plan, receipt: Receipt, known: Known | None) -> Evaluation:
        wanted = Wanted(
            count=self._pipeline.controls,
            modifications=[found for found in reviewed.modifications if found.id in receipt.modifications],
            folder=self._folder,
            fitted=fitted_to(reviewed),
        )

        def evaluated() -> Evaluation:
            with self._watcher.progress("evaluating", unit="tokens") as bar:
                found = evaluate(
                    self._model,
                    self._candidate,
                    self._suite,
                    seed=self._pipeline.seed,
                    controls=wanted,
                    progress=bar.set,
                    baseline_side=Side(name=profile.name, fingerprint=profile.fingerprint),
                    candidate_side=Side(name=CANDIDATE, fingerprint=receipt.fingerprint_after),
                )
            if known is None:
                return found
            return with_foretold(found, self._suite, self._checkpoint, wanted, known)

        found = self._step("evaluation.json", evaluated, Evaluation.model_validate_json)
        with suppress(StorageError, Locked):  # notes for later, never a reason to stop
            record_in_ledger(self._candidate, found, by="pipeline")
        with suppress(StorageError):
            record_evaluation(reviewed, found, track_folder(self._environment))
        return found

    def revert(self, profile: Profile) -> None:
        if profile_of(open_checkpoint(self._candidate)).fingerprint != profile.fingerprint:
            with self._watcher.progress("reverting") as bar:
                revert(self._candidate, to=0, by="gate", progress=bar.step)

    def outcome(
        self, profile: Profile, decision: str, why: str, status: int, receipt: Receipt | None = None
    ) -> Outcome:
        candidate = open_checkpoint(self._candidate) if receipt else None
        found = Outcome.model_validate(
            {
                "decision": decision,
                "why": why,
                "exit_status": status,
                "model": str(self._model),
                "fingerprint": profile.fingerprint,
                "candidate": str(self._candidate) if candidate else None,
                "candidate_fingerprint": profile_of(candidate).fingerprint if candidate else None,
                "modifications": len(receipt.modifications) if receipt else 0,
                "files": tuple(name for name in FILES[:-1] if (self._folder / name).is_file()),
            }
        )
        return self._step("outcome.json", lambda: found, Outcome.model_validate_json)

    def _step(self, name: str, make: Callable[[], _R], read: Callable[[str], _R]) -> _R:
        """The record in the file `name`; made and written first, if it is not there."""
        path = self._folder / name
        if not path.is_file():
            made = make()
            fsio.replace_file(path, made.model_dump_json(indent=2).encode() + b"\n")
            self._watcher.say(f"wrote {path}")
            return made
        return read(read_text(path))


def _policy_of(pipeline: Pipeline, origin: Path, environment: Mapping[str, str]) -> Policy:
    """The policy that the pipeline names, else that of whoever runs it, else the default one."""
    operators = environment.get(OPERATORS_POLICY)
    path = origin / pipeline.policy if pipeline.policy else Path(operators) if operators else None
    policy = read_policy(read_text(path)) if path else Policy()
    if policy.signed_approval:
        raise PipelineInvalid(
            f"the policy {path} asks for a signed approval, which no rule can give",
            hint="propose, review with --sign KEY, and apply by hand; or name another policy in the pipeline",
        )
    return policy


def _reviewed(plan: Plan, report: CheckReport, rule: ReviewRule, policy: Policy) -> Plan:
    changes = {
        checked.id: max(
            (math.inf if t.relative_change is None else t.relative_change for t in checked.tensors), default=0
        )
        for checked in report.modifications
    }
    effects = {checked.id: checked.effect for checked in report.modifications}
    for modification in plan.modifications:
        sure = modification.confidence >= rule.least_confidence
        small = rule.most_relative_change is None or changes.get(modification.id, 0.0) <= rule.most_relative_change
        effect = effects.get(modification.id, "unknown")
        idle = effect in ("void", "ignored", "invariant")
        why = (
            f"confidence {modification.confidence:g}, relative change {changes.get(modification.id, 0.0):.3g}, "
            f"effect {effect}"
        )
        grounded = rule.ungrounded or bool(modification.evidence)
        why += "" if grounded else ", UNGROUNDED: it cites no measured fact"
        passes = sure and small and not idle and grounded
        decision: Literal["approved", "rejected"] = "approved" if passes else "rejected"
        plan = decide(plan, [modification.id], decision, reviewer=str(rule), comment=why, policy=policy, how="rule")
    return plan
