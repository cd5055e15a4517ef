"""A profile written tensor by tensor is the document that it is in one piece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import random_tensor, write_checkpoint

from planner.checkpoint import open_checkpoint
from planner.profile import Profile, profile_checkpoint
from planner.profile.pieces import profile_pieces


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_pieces_make_the_whole(count: int, tmp_path: Path) -> None:
    tensors = {f"layers.{n}.w": ("BF16", random_tensor((4, 8), seed=n)) for n in range(count)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, config={"model_type": '"tensors":[]'}))
    profile = profile_checkpoint(checkpoint)
    written = b"".join(profile_pieces(profile))
    assert json.loads(written) == profile.model_dump(mode="json")
    assert Profile.model_validate_json(written) == profile
