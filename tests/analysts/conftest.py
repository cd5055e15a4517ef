"""A brief for any checkpoint, as `planner propose` makes it, and answers that hold for the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planner.analysts import Brief
from planner.architecture import map_of
from planner.checkpoint import open_checkpoint
from planner.effects import check
from planner.plan import Policy
from planner.profile import Profile, histograms_of, profile_checkpoint, profile_of

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"


def _brief(model: Path, **policy: Any) -> Brief:
    checkpoint, limits = open_checkpoint(model), Policy(**policy)
    profile = profile_of(checkpoint)
    kept = histograms_of(profile)
    return Brief(
        goal="fewer mistakes",
        profile=profile,
        policy=limits,
        check=lambda plan: check(plan, checkpoint, profile, limits, histograms=kept),
        checkpoint=checkpoint,
        model=map_of(checkpoint.config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()}),
        histograms=kept,
    )


@pytest.fixture
def brief() -> Callable[..., Brief]:
    """`brief(folder, **policy)`."""
    return _brief


@pytest.fixture(scope="session")
def tiny_profile() -> Profile:
    """The profile of the bundled model."""
    return profile_checkpoint(open_checkpoint(TINY_MODEL))


@pytest.fixture
def answer(tiny_profile: Profile) -> Callable[..., str]:
    """A good answer about the tiny model with some fields of its one modification replaced."""
    tensor = tiny_profile.by_name["model.layers.2.mlp.up_proj.weight"]

    def write(**changed: Any) -> str:
        modification = {
            "id": "m01",
            "target": {"tensors": [tensor.name]},
            "operation": {"kind": "scale", "factor": 1.05},
            "reasoning": "its std is low",
            "confidence": 0.4,
            "expected_impact": "a lower loss",
            "evidence": [{"tensor": tensor.name, "fact": "std", "value": tensor.std}],
        }
        return json.dumps({"note": "one careful step", "modifications": [modification | changed]})

    return write
