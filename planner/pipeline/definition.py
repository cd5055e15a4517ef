"""A pipeline file: everything that a run is to do, stated before it starts."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from planner.analysts import AnalystChoice
from planner.errors import PipelineInvalid
from planner.inputs import read_text
from planner.plan import Policy, field_path
from planner.records import Record

__all__ = ["Pipeline", "ReviewRule", "Started", "read_pipeline"]


class ReviewRule(Record):
    """The stated rule that takes the place of a human reviewer."""

    least_confidence: float = Field(default=0.0, ge=0, le=1)
    """Modifications the analyst is less sure of are rejected."""
    most_relative_change: float | None = Field(default=None, gt=0)
    """Modifications that change a tensor by more than this, ‖ΔW‖F/‖W‖F, are rejected."""

    def __str__(self) -> str:
        limits = [f"confidence >= {self.least_confidence:g}"]
        if self.most_relative_change is not None:
            limits.append(f"relative change <= {self.most_relative_change:g}")
        return "rule: " + " and ".join(limits)


class Pipeline(Record):
    """Profile, propose, check, review by a rule, apply, evaluate, gate, keep or revert."""

    model: str
    """Checkpoint folder, relative to the pipeline file, or hub id. It is only read."""
    goal: str = Field(min_length=1, max_length=2048)
    """What is wanted from the model, in a sentence."""
    suite: str
    """Suite file, relative to the pipeline file; its gates decide."""
    policy: str | None = None
    """Policy file, relative to the pipeline file."""
    analyst: AnalystChoice = AnalystChoice()
    """Who writes the plan."""
    review: ReviewRule = ReviewRule()
    """Which modifications are approved."""
    controls: int = Field(default=39, ge=0, le=1000)
    """Random plans of the same strengths that the evaluation compares the candidate with; each costs one pass over the
    text of one metric. 0 for none."""
    seed: int = Field(default=0, ge=0)
    """Of the evaluation: its bootstrap, its permutation test and its random plans."""


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
        "analyst": AnalystChoice.model_fields,
        "review": ReviewRule.model_fields,
    }.items()
)
