"""Evidence of the bundled model on a few short documents, and what an analyst needs to work from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.analysts import Brief, Study
from planner.architecture import map_of
from planner.checkpoint import open_checkpoint
from planner.effects import check, known_evidence
from planner.evaluation import Suite, load_suite
from planner.evidence import write_evidence
from planner.plan import Policy
from planner.probes import ProbeRequest, probe
from planner.profile import Profile, histograms_of, profile_checkpoint

__all__ = ["TEXTS", "TINY", "brief_for", "documents", "measure", "study_of", "suite_in"]

TINY = Path(__file__).parents[2] / "examples" / "tiny-model"
TEXTS = TINY / "texts"
MAX_TOKENS = 48


def documents(name: str, begin: int, end: int) -> list[str]:
    """Some documents of a text of the bundled model."""
    lines = (TEXTS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines[begin:end]]


def measure(folder: Path, model: Path, goal: list[str], neutral: list[str], **options: Any) -> Path:
    """Evidence in `folder`, with its texts beside it."""
    (folder / "goal.json").write_text(json.dumps(goal))
    (folder / "neutral.json").write_text(json.dumps(neutral))
    checkpoint = open_checkpoint(model)
    asked = {"goal_text": folder / "goal.json", "max_tokens": MAX_TOKENS} | options
    request = ProbeRequest(text=folder / "neutral.json", **asked)
    found = probe(checkpoint, profile_checkpoint(checkpoint).fingerprint, request)
    write_evidence(folder / "evidence.json", found.evidence, found.arrays())
    return folder / "evidence.json"


def suite_in(folder: Path, goal: list[str], *, guard: list[str] | None = None, extra: str = "") -> Suite:
    """A suite whose objective is the loss on `goal`; with `guard`, a second metric on those documents."""
    (folder / "tune.json").write_text(json.dumps(goal))
    text = f'[[metric]]\nname = "goal"\nkind = "text_loss"\ntext = "tune.json"\nmax_tokens = {MAX_TOKENS}\n'
    if guard is not None:
        (folder / "guard.json").write_text(json.dumps(guard))
        text += f'[[metric]]\nname = "guard"\nkind = "text_loss"\ntext = "guard.json"\nmax_tokens = {MAX_TOKENS}\n'
    (folder / "suite.toml").write_text(text + extra)
    return load_suite(folder / "suite.toml")


def study_of(path: Path, model: Path = TINY, **fields: Any) -> Study:
    """What the analyst works from."""
    evidence, measured = known_evidence(path)
    return Study(checkpoint=open_checkpoint(model), path=path, evidence=evidence, measured=measured, **fields)


def brief_for(folder: Path, path: Path, model: Path = TINY, *, profile: Profile | None = None, **policy: Any) -> Brief:
    """A brief for a plan that will lie in `folder`, as `planner propose` makes it."""
    checkpoint, limits = open_checkpoint(model), Policy(**policy)
    profile = profile or profile_checkpoint(checkpoint)
    known = known_evidence(path)
    return Brief(
        goal="a shorter list",
        profile=profile,
        policy=limits,
        check=lambda plan: check(plan, checkpoint, profile, limits, folder=folder, evidence=known),
        checkpoint=checkpoint,
        model=map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()}),
        histograms=histograms_of(profile),
        evidence=known,
        evidence_file=path.name,
    )
