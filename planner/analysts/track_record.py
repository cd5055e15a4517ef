"""How often the plans of an analyst helped, beside how sure it said it was.

A confidence that nobody compares with what came of it is decoration. Each evaluation of a plan leaves one small file in
the user's state folder; the track record of an analyst is what those files say together. An evaluation measures a plan
as a whole, so the success of a modification is that of its plan: which of several modifications did it is not known.
For the same reason every plan counts the same in the means, however many modifications it holds, and a plan that was
evaluated on several suites counts once, as its latest evaluation says.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from planner import fsio
from planner.analysts.aliases import quoted
from planner.checkpoint import digest_bytes
from planner.evaluation import Evaluation, MetricResult
from planner.plain_text import plain
from planner.plan import Modification, Plan, modification_digest
from planner.records import Record

__all__ = [
    "CONFIDENCE_EDGES",
    "ConfidenceBin",
    "TrackEntry",
    "TrackRecord",
    "record_evaluation",
    "state_folder",
    "track_folder",
    "track_record",
    "wilson_interval",
]

CONFIDENCE_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Edges of the bins of confidence; each bin holds its lower edge, the last one both."""
_Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
_LARGEST = 2**20
_LONGEST_NAME = 60
_USUAL_NAME = re.compile(r"[A-Za-z0-9._:/@+-]+")
_WORDS = {"rules": "the rules", "random": "the random control", "human": "plans by hand", "imported": "imported lists"}

Share = Annotated[float, Field(ge=0, le=1)]


class TrackEntry(Record):
    """One plan, and what one evaluation found of it."""

    schema_: Literal["planner/track@1"] = Field(default="planner/track@1", alias="schema")
    """Kind and version of this file."""
    plan: str
    """The id of the plan."""
    plan_digest: str
    """Digest of what was applied and by whom it was proposed: the same proposal under another id is the same plan."""
    suite_digest: str
    """Digest of the suite file."""
    kind: str
    """The kind of analyst."""
    model: str | None
    """The language model, where there is one."""
    asked_for: str | None = None
    """The same as the user named it."""
    fingerprint: str
    """The checkpoint that the plan was made for."""
    confidences: tuple[Share, ...] = Field(min_length=1)
    """As stated, of every modification that was applied."""
    metric: str
    """The metric that improved most; where none did, the one that the controls were made for."""
    difference: float | None
    """Its calibrated difference, candidate minus baseline, nats per token; null where the loss is not finite."""
    p_value: float | None
    """The p-value of that difference, adjusted for the number of metrics; null where there is none."""
    success: bool
    """Whether the `verdict` of some metric is "improved" and the evaluation is `accepted` by every gate; in a suite
    without gates, no metric may be worse."""
    at: str
    """When it was recorded, UTC."""


class ConfidenceBin(Record):
    """Modifications whose stated confidence lies in one range."""

    low: float
    """Lower edge, included."""
    high: float
    """Upper edge; included in the last bin only."""
    modifications: int
    """How many."""
    stated: float | None
    """Their mean stated confidence; null where there are none."""
    measured: float | None
    """The share of them whose plan helped; null where there are none."""


class TrackRecord(Record):
    """What became of the plans of one analyst."""

    kind: str
    """The kind of analyst."""
    model: str | None
    """The language model, where there is one."""
    plans: int
    """Different plans that were evaluated."""
    helped: int
    """Those that improved a metric and passed every gate."""
    modifications: int
    """Modifications in all of these plans."""
    stated: float | None
    """Mean over plans of the mean confidence of their modifications; null without plans."""
    measured: float | None
    """The share of plans that helped; null without plans."""
    interval: tuple[float, float] | None
    """95 % interval of that share (Wilson 1927, "Probable inference, the law of succession, and statistical
    inference"); null without plans."""
    brier: float | None
    """Mean over plans of the mean of (confidence - success)² over their modifications (Brier 1950, "Verification of
    forecasts expressed in terms of probability"): 0 is best, 0.25 is what a constant 0.5 gets; null without plans."""
    overconfidence: float | None
    """Stated minus measured; above 0, the analyst promises more than it delivers. Null without plans."""
    bins: tuple[ConfidenceBin, ...]
    """Over modifications, by stated confidence."""
    broken: int
    """Files of the folder, of whichever analyst, that could not be read and were left out."""

    def sentence(self) -> str:
        """One plain sentence for a reviewer, and for the analyst itself."""
        name = _shown(self.model) if self.model else _WORDS.get(self.kind, plain(self.kind))
        if self.interval is None or self.measured is None or self.stated is None:
            return f"no plan of {name} has been evaluated yet"
        low, high = (round(100 * end) for end in self.interval)
        return (
            f"of {self.plans} evaluated plan{'s' if self.plans > 1 else ''} of {name} {self.helped} helped "
            f"({round(100 * self.measured)} %, 95 % interval {low} to {high} %); stated confidence was "
            f"{self.stated:.2f} on average"
        )


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """PLANNER_STATE, or `planner` in the user's state folder (XDG_STATE_HOME, else ~/.local/state)."""
    if own := environment.get("PLANNER_STATE"):
        return Path(own).expanduser()
    return Path(environment.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "planner"


def track_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the entries lie: the folder `track` of `state_folder`."""
    return state_folder(environment) / "track"


def record_evaluation(plan: Plan, evaluation: Evaluation, folder: Path) -> Path | None:
    """Write what the evaluation found of the plan into `folder`, which is made if need be; the path of the file.

    There is one file for each plan and suite: a second evaluation replaces the first. None, and nothing is written,
    where there is nothing to learn: no modification was applied, or the baseline is not the plan's checkpoint. What was
    applied is what the review approves; of a plan without a review, everything. Raises `StorageError`.
    """
    applied = _applied(plan)
    metric = _telling(evaluation)
    other = evaluation.baseline.fingerprint not in (None, plan.checkpoint.fingerprint)
    if not applied or metric is None or other:
        return None
    calibrated = metric.calibrated
    entry = TrackEntry(
        plan=plan.id,
        plan_digest=_digest(plan, applied),
        suite_digest=evaluation.suite.digest,
        kind=plan.analyst.kind,
        asked_for=plan.analyst.asked_for,
        model=plan.analyst.model,
        fingerprint=plan.checkpoint.fingerprint,
        confidences=tuple(modification.confidence for modification in applied),
        metric=metric.name,
        difference=calibrated.difference if calibrated else None,
        p_value=calibrated.p_holm if calibrated else None,
        success=evaluation.accepted and _improved(evaluation),
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    )
    fsio.ensure_folder(folder)
    path = folder / f"{_short(entry.plan_digest)}-{_short(entry.suite_digest)}.json"
    fsio.replace_file(path, entry.model_dump_json(indent=2).encode() + b"\n")
    return path


def track_record(folder: Path, kind: str, model: str | None = None) -> TrackRecord:
    """What the files in `folder` say of the analyst of that kind and model; a folder that is not there says nothing.

    The model is named as its provider does, or as the user did who asked for it.

    A file that is no entry is counted and passed over: a record of the past is never a reason to fail.
    """
    latest: dict[str, TrackEntry] = {}
    broken = 0
    for entry in _entries(folder):
        if entry is None:
            broken += 1
        elif entry.kind == kind and model in (entry.model, entry.asked_for or entry.model):
            known = latest.get(entry.plan_digest)
            if known is None or entry.at >= known.at:
                latest[entry.plan_digest] = entry
    entries = list(latest.values())
    count, helped = len(entries), sum(entry.success for entry in entries)
    stated = _mean([_mean(entry.confidences) or 0.0 for entry in entries])
    measured = helped / count if count else None
    return TrackRecord(
        kind=kind,
        model=model,
        plans=count,
        helped=helped,
        modifications=sum(len(entry.confidences) for entry in entries),
        stated=stated,
        measured=measured,
        interval=wilson_interval(helped, count) if count else None,
        brier=_mean([_mean([(c - entry.success) ** 2 for c in entry.confidences]) or 0.0 for entry in entries]),
        overconfidence=None if stated is None or measured is None else stated - measured,
        bins=tuple(_bins(entries)),
        broken=broken,
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927), both ends in [0, 1]. Raises ValueError without trials."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes of {trials}")
    share, weight = successes / trials, _Z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    # At the ends the formula gives exactly 0 and 1; rounding would leave 1e-17 of either.
    return (0.0 if not successes else centre - half, 1.0 if successes == trials else centre + half)


def _shown(model: str) -> str:
    """What providers call models as it is; any other name quoted, for a model reads the sentence too."""
    return model[:_LONGEST_NAME] if _USUAL_NAME.fullmatch(model) else quoted(model, longest=_LONGEST_NAME)


def _telling(evaluation: Evaluation) -> MetricResult | None:
    """The metric that improved most, where one did; else the one that the controls were made for."""
    better = [one for one in evaluation.metrics if one.verdict == "improved" and one.calibrated]
    if better:
        return min(better, key=lambda one: one.calibrated.difference if one.calibrated else 0.0)
    return next((one for one in evaluation.metrics if one.name == evaluation.controls.metric), None)


def _improved(evaluation: Evaluation) -> bool:
    """Whether some metric improved; without a gate that says how much another may lose, none may be worse."""
    verdicts = [one.verdict for one in evaluation.metrics]
    return "improved" in verdicts and (bool(evaluation.gates) or "worse" not in verdicts)


def _applied(plan: Plan) -> tuple[Modification, ...]:
    if not plan.review:
        return plan.modifications
    approved = {name for name, decision in plan.review.items() if decision.decision == "approved"}
    return tuple(modification for modification in plan.modifications if modification.id in approved)


def _digest(plan: Plan, applied: Sequence[Modification]) -> str:
    parts = [plan.checkpoint.fingerprint, plan.analyst.kind, plan.analyst.model, *map(modification_digest, applied)]
    return digest_bytes(json.dumps(parts).encode())


def _short(digest: str) -> str:
    """As much of a digest as a file name needs; a suite's is a stranger's text until it is known to be hexadecimal."""
    found = digest.removeprefix("blake3:")[:32]
    return found if found.isalnum() and found.isascii() else digest_bytes(digest.encode()).removeprefix("blake3:")[:32]


def _entries(folder: Path) -> Iterator[TrackEntry | None]:
    """Every entry of the folder in the order of the names; None for a file that is not one."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith("."))
    except OSError:
        return
    for path in paths:
        try:
            if not path.is_file() or path.stat().st_size > _LARGEST:
                yield None
            else:
                yield TrackEntry.model_validate_json(path.read_bytes(), strict=True)
        except (OSError, ValidationError):
            yield None


def _bins(entries: Sequence[TrackEntry]) -> Iterator[ConfidenceBin]:
    judged = [(confidence, entry.success) for entry in entries for confidence in entry.confidences]
    for low, high in pairwise(CONFIDENCE_EDGES):
        last = high == CONFIDENCE_EDGES[-1]
        inside = [(c, success) for c, success in judged if low <= c and (c < high or last)]
        yield ConfidenceBin(
            low=low,
            high=high,
            modifications=len(inside),
            stated=_mean([confidence for confidence, _ in inside]),
            measured=_mean([float(success) for _, success in inside]),
        )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
