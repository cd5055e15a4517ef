"""A pipeline file: everything that a run is to do, stated before it starts."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from planner.analysts import AnalystChoice
from planner.errors import PipelineInvalid
from planner.inputs import read_text
from planner.plan import Policy, field_path
from planner.records import Record

__all__ = ["Pipeline", "ProbeRule", "ReviewRule", "Started", "TuneRule", "read_pipeline"]


class ReviewRule(Record):
    """The stated rule that takes the place of a human reviewer."""

    least_confidence: float = Field(default=0.0, ge=0, le=1)
    """Modifications the analyst is less sure of are rejected."""
    most_relative_change: float | None = Field(default=None, gt=0)
    """Modifications that change a tensor by more than this, ‖ΔW‖F/‖W‖F, are rejected."""
    ungrounded: bool = False
    """Whether modifications that cite no measured fact may be approved; nobody is there to ask for one."""

    def __str__(self) -> str:
        limits = [f"confidence >= {self.least_confidence:g}"]
        if self.most_relative_change is not None:
            limits.append(f"relative change <= {self.most_relative_change:g}")
        if not self.ungrounded:
            limits.append("cites a measured fact")
        return "rule: " + " and ".join(limits)


class ProbeRule(Record):
    """What to measure before anything is proposed; files are named relative to the pipeline file."""

    text: str
    """Neutral text, on which the model should stay as it is; also the goal where no other is named."""
    goal_text: str | None = None
    """Text that should become likelier."""
    against: str | None = None
    """Text that should become less likely than the goal text."""
    choices: str | None = None
    """Questions with choices, instead of a goal text."""
    documents: int | None = Field(default=256, ge=1)
    """At most so many documents of each text; null for all."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Documents are cut after so many tokens."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the model runs in."""
    seed: int = Field(default=0, ge=0)
    """Of the shuffle, the sampled labels and the sketches."""


class TuneRule(Record):
    """How the rules choose the strength of what they propose from the evidence."""

    suite: str | None = None
    """Suite to tune on, relative to the pipeline file; it should share no text with the one that decides. null: one
    step from the evidence alone."""
    budget: int = Field(default=30, ge=1)
    """Evaluations of it at most."""
    most: int = Field(default=44, ge=1)
    """Modifications at most."""
    drift_weight: float | None = Field(default=None, ge=0)
    """How much a nat of drift counts against a nat of loss; null: 0, or 3 where the suite has a gate against harm."""


class Pipeline(Record):
    """Profile, probe, propose, check, review by a rule, apply, evaluate, gate, keep or revert."""

    model: str
    """Checkpoint folder, relative to the pipeline file, or hub id. It is only read."""
    goal: str = Field(min_length=1, max_length=2048)
    """What is wanted from the model, in a sentence."""
    suite: str
    """Suite file, relative to the pipeline file; its gates decide."""
    policy: str | None = None
    """Policy file, relative to the pipeline file."""
    probe: ProbeRule | None = None
    """What to measure; the rules then work from it. null: nothing, they know the profile alone."""
    analyst: AnalystChoice = AnalystChoice()
    """Who writes the plan."""
    tune: TuneRule = TuneRule()
    """How the rules use what was measured."""
    review: ReviewRule = ReviewRule()
    """Which modifications are approved."""
    controls: int = Field(default=39, ge=0, le=1000)
    """Random plans of the same strengths that the evaluation compares the candidate with; each costs one pass over the
    text of one metric. 0 for none."""
    seed: int = Field(default=0, ge=0)
    """Of the evaluation: its bootstrap, its permutation test and its random plans."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.tune.suite and self.analyst.kind != "rules":
            raise ValueError("[tune] is for the rules: they choose a strength, a language model says it")
        if self.tune.suite and not self.probe:
            raise ValueError("[tune] needs [probe]: there is nothing to choose the strength of")
        return self


class Started(Record):
    """The first file of a run: what it was started with, so that it is never finished with something else."""

    schema_: Literal["planner/started@1"] = Field(default="planner/started@1", alias="schema")
    """Kind and version of this file."""
    pipeline: Pipeline
    """The pipeline."""
    policy: Policy
    """The policy it names."""
    suite: str
    """Digest of the suite file."""
    texts: dict[str, str]
    """Digests of the texts that the suite names."""
    tuning: str | None = None
    """Digest of the suite to tune on; null without one."""


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline in a TOML file. Raises `FileUnreadable` or `PipelineInvalid` with every problem."""
    text = read_text(path)
    try:
        return Pipeline.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise PipelineInvalid(f"{path} is not TOML: {error}", hint=_HINT) from None
    except ValidationError as error:
        problems = "; ".join(f"{field_path(item['loc'])}: {item['msg']}" for item in error.errors())
        raise PipelineInvalid(f"{path}: {problems}", hint=_HINT) from None


_HINT = "; ".join(
    f"{name}: {', '.join(fields)}"
    for name, fields in {
        "fields": Pipeline.model_fields,
        "probe": ProbeRule.model_fields,
        "analyst": AnalystChoice.model_fields,
        "tune": TuneRule.model_fields,
        "review": ReviewRule.model_fields,
    }.items()
)
