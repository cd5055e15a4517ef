"""Folders to open, and the ways to say what came of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from builders import random_tensor

from planner.checkpoint import Checkpoint, open_checkpoint
from planner.errors import CheckpointError

__all__ = ["INDEX", "TENSORS", "assert_refused", "content", "edit_index", "within"]

INDEX = "model.safetensors.index.json"
TENSORS = {f"layers.{n}.w": ("BF16", random_tensor((4, 8), seed=n)) for n in range(4)}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail instead of hanging."""

    def late(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"still waiting after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def content(checkpoint: Checkpoint, *, size: int = 2**20) -> dict[str, bytes]:
    return {name: b"".join(checkpoint.chunks(tensor, size=size)) for name, tensor in checkpoint.tensors.items()}


def edit_index(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def assert_refused(folder: Path, error: type[CheckpointError], why: str) -> None:
    with within(5), pytest.raises(error) as refused:
        open_checkpoint(folder)
    assert type(refused.value) is error
    assert why in refused.value.message
    assert refused.value.exit_status == 9
    assert refused.value.hint
